"use strict";
const plots = JSON.parse(document.getElementById("plots").textContent);

for (const [id, { data, layout }] of Object.entries(plots)) {
  const element = document.getElementById("plot-" + id);
  Plotly.newPlot(element, data, layout, {
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
