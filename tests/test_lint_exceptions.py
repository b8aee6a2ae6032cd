"""Exceptions from the safety rules, of code and of dependencies, stand with their reasons."""

from __future__ import annotations

import http.server
import json
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.ports import free_port

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "audit_dependencies.py"
NOQA = re.compile(r"# noqa\b(?P<codes>:\s*[A-Z]+\d+(?:\s*,\s*[A-Z]+\d+)*)?(?P<rest>.*)")


def sources() -> Iterator[Path]:
    for folder in ("resp_tune", "scripts", "tests"):
        yield from (ROOT / folder).rglob("*.py")


def test_every_exception_in_the_code_has_a_reason() -> None:
    seen = 0
    for path in sources():
        for number, line in enumerate(path.read_text().splitlines(), 1):
            found = NOQA.search(line)
            if found is None or "NOQA" in line or '"# noqa' in line:
                continue
            where = f"{path.relative_to(ROOT)}:{number}"
            assert found["codes"], f"{where}: an exception from every rule"
            if re.search(r"\bS\d", found["codes"]):
                seen += 1
                assert re.match(r"\s*# \w{2,}", found["rest"]), f"{where}: why?"
    assert seen > 8


def test_every_exception_in_the_settings_has_a_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    rules = tomllib.loads(text)["tool"]["ruff"]["lint"]
    assert "S" in rules["select"]
    assert not [code for code in rules["ignore"] if code.startswith("S")]
    assert set(rules["per-file-ignores"]) == {"tests/**"}
    lines = [line for line in text.splitlines() if re.search(r'"S\d{3}"', line)]
    assert lines
    for line in lines:
        assert re.search(r"# \w+ \w+", line), line
    ci = (ROOT / ".ci" / "run").read_text()
    assert "ruff" in ci
    assert "scripts/audit_dependencies.py" in ci


@contextmanager
def advisories(package: str) -> Iterator[list[str]]:
    """osv.dev on this machine: one advisory, for one package."""
    fix = {"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "999.1"}]}
    affected = [{"package": {"name": package, "ecosystem": "PyPI"}, "ranges": [fix]}]
    vulns = [{"id": "PYSEC-0000-1", "aliases": ["CVE-0000-1"], "details": "", "affected": affected}]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the base class's name
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body = json.dumps({"vulns": vulns} if asked["package"]["name"] == package else {})
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield ["-s", "osv", "--osv-url", f"http://127.0.0.1:{server.server_port}"]
    finally:
        server.shutdown()
        server.server_close()


def audit(arguments: list[str], accepted: Path | None = None) -> tuple[int, str]:
    code = "import sys; sys.path.insert(0, 'scripts'); import audit_dependencies as a; "
    code += "from pathlib import Path; sys.exit(a.main(sys.argv[2:], Path(sys.argv[1])))"
    given = accepted or ROOT / "scripts" / "accepted_vulnerabilities.txt"
    done = subprocess.run(
        [sys.executable, "-c", code, str(given), *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout


def test_a_vulnerability_is_found_or_accepted(tmp_path: Path) -> None:
    pytest.importorskip("pip_audit")
    accepted = tmp_path / "accepted.txt"
    accepted.write_text("# one\nCVE-0000-1 nothing here calls the part that has it\n")
    with advisories("numpy") as service:
        code, said = audit(service)
        assert code == 1
        assert re.search(r"^numpy [\d.]+: PYSEC-0000-1, fixed in 999.1$", said, re.MULTILINE)
        code, said = audit(service, accepted)
        assert code == 0
        assert "0 vulnerabilities, 1 accepted" in said


def test_without_the_database_it_is_no_failure() -> None:
    code, said = audit(["-s", "osv", "--osv-url", f"http://127.0.0.1:{free_port()}"])
    assert code == 0
    assert said == (
        "dependencies: NOT audited, the database of vulnerabilities cannot be reached\n"
    )


def test_an_acceptance_needs_a_reason(tmp_path: Path) -> None:
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        from audit_dependencies import read_accepted  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(SCRIPT.parent))
    (tmp_path / "a.txt").write_text("CVE-1\n")
    with pytest.raises(ValueError, match="gives no reason"):
        read_accepted(tmp_path / "a.txt")
    assert read_accepted(ROOT / "scripts" / "accepted_vulnerabilities.txt") == {}
