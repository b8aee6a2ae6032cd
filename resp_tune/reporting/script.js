"use strict";
const plots = JSON.parse(document.getElementById("plots").textContent);

const ink = "#1b2228", muted = "#59656f", line = "#dde2e6", clear = "rgba(0,0,0,0)";
const axis = {
  gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true,
  title: { font: { size: 13, color: muted } },
};
const template = {
  layout: {
    xaxis: axis, yaxis: axis,
    margin: { l: 56, r: 16, t: 24, b: 48 },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
    colorway: ["#1769aa", "#0b7a5c", "#8a3fa0", "#8a6a00", "#c0306a", "#3f6f8f", "#6b7680"],
    paper_bgcolor: clear,
    font: { family: "system-ui, sans-serif", size: 13, color: ink },
    hoverlabel: { bgcolor: "white", font: { color: ink }, align: "left" },
    hovermode: "closest",
    modebar: { bgcolor: clear, color: muted, activecolor: ink },
  },
};
for (const [id, { data, layout }] of Object.entries(plots)) {
  const element = document.getElementById("plot-" + id);
  Plotly.newPlot(element, data, { ...layout, template }, {
    displaylogo: false,
    displayModeBar: element.clientWidth > 500 ? "hover" : false,
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
  });
}

function cellKey(row, index) {
  const text = row.cells[index].dataset.key ?? row.cells[index].textContent.trim();
  const value = text === "" || text === "–" ? NaN : Number(text);
  return { text, value };
}

function sortBy(header) {
  const table = header.closest("table");
  const index = header.cellIndex;
  const descending = header.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const sign = descending ? -1 : 1;
  const rows = [...table.tBodies[0].rows].map((row) => [cellKey(row, index), row]);
  rows.sort(([a], [b]) => {
    const missing = (key) => key.text === "" || key.text === "–";
    if (missing(a) || missing(b)) return missing(a) - missing(b);
    if (!isNaN(a.value) && !isNaN(b.value)) return sign * (a.value - b.value);
    return sign * a.text.localeCompare(b.text);
  });
  table.tBodies[0].append(...rows.map(([, row]) => row));
}

for (const button of document.querySelectorAll("th > button"))
  button.addEventListener("click", () => sortBy(button.parentElement));
for (const button of document.querySelectorAll("button[data-copy]"))
  button.addEventListener("click", () => {
    const code = button.previousElementSibling;
    getSelection().selectAllChildren(code);
    const done = () => (button.textContent = "copied");
    if (navigator.clipboard) navigator.clipboard.writeText(code.textContent).then(done, () => {});
    else if (document.execCommand("copy")) done();
  });
const resized = new ResizeObserver((entries) => {
  for (const { target } of entries) Plotly.Plots.resize(target);
});
for (const element of document.querySelectorAll(".plot")) resized.observe(element);
