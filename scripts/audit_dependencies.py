"""Known vulnerabilities among the versions in constraints.txt, by pip-audit.

    python scripts/audit_dependencies.py                 asks PyPI's advisory database
    python scripts/audit_dependencies.py -s osv          asks osv.dev; arguments go to pip-audit

Exit 1 for one that scripts/accepted_vulnerabilities.txt does not name. Where the database cannot
be reached nothing is known, which is said, and is no failure.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PINS = HERE.parent / "constraints.txt"
ACCEPTED = HERE / "accepted_vulnerabilities.txt"
PATIENCE = 300  # seconds


def main(arguments: Sequence[str], accepted: Path = ACCEPTED) -> int:
    """Print what is known of the pinned versions and return the exit code."""
    reasons = read_accepted(accepted)
    packages = ask(arguments)
    audited = [p for p in packages if "vulns" in p]
    if not audited:
        print("dependencies: NOT audited, the database of vulnerabilities cannot be reached")
        return 0
    found = [(package, vuln) for package in audited for vuln in package["vulns"]]
    new = [(p, v) for p, v in found if not reasons.keys() & {v["id"], *v.get("aliases", ())}]
    for package, vuln in new:
        fixed = ", ".join(vuln["fix_versions"]) or "no version yet"
        print(f"{package['name']} {package['version']}: {vuln['id']}, fixed in {fixed}")
    print(
        f"dependencies: {len(audited)} of {len(packages)} audited, {len(new)} vulnerabilities, "
        f"{len(found) - len(new)} accepted"
    )
    return 1 if new else 0


def ask(arguments: Sequence[str]) -> list[dict[str, Any]]:
    """What pip-audit says of each package: its `vulns`, or why it was skipped."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(PINS), "--no-deps"]
    command += ["--disable-pip", "--progress-spinner", "off", "--format", "json", *arguments]
    try:
        done = subprocess.run(  # noqa: S603  # our own arguments, no shell
            command, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        packages: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError):  # it ends with a traceback without a network
        return []
    return packages


def read_accepted(path: Path) -> dict[str, str]:
    """Reasons by ID; raises `ValueError` for an ID without one."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    reasons = {}
    for line in lines:
        name, _, reason = line.partition(" ")
        if len(reason.split()) < 3:
            raise ValueError(f"{path}: '{line}' gives no reason")
        reasons[name] = reason.strip()
    return reasons


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
