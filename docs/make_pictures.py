"""The README's pictures, from the running stack: `python docs/make_pictures.py` after `unimed demo`.

Needs a Chromium (Debian: `apt-get install chromium`); nothing else of the project does.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent / "pictures"


def screenshot(chromium: str, url: str, target: Path, height: int) -> None:
    """Let the page settle, then take its picture."""
    with tempfile.TemporaryDirectory() as profile:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
        size = [f"--window-size=1360,{height}", "--hide-scrollbars", "--virtual-time-budget=15000", f"--user-data-dir={profile}"]
        subprocess.run([chromium, *flags, *size, f"--screenshot={target}", url], check=True, timeout=120, capture_output=True)


def main() -> None:
    from infra.registry import ModelRegistry
    from infra.settings import get_settings
    from infra.store import log_store

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("no Chromium found; install one (Debian: apt-get install chromium)")
    settings, registry = get_settings(), ModelRegistry()
    champion = registry.get(registry.resolve("champion"))
    report = log_store().get_json(registry.records(champion.id, "evaluation")[-1]["report_key"])
    FOLDER.mkdir(exist_ok=True)
    screenshot(chromium, f"{settings.prefect_ui_url}/runs/flow-run/{champion.lineage['flow_run']}?tab=Artifacts", FOLDER / "prefect-retrain.png", 1000)
    (FOLDER / "contact-sheet.png").write_bytes(log_store().get(report["contact_sheet_key"]))
    print(*sorted(FOLDER.glob("*.png")), sep="\n")


if __name__ == "__main__":
    main()
