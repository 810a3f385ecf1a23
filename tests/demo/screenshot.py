"""Take pictures of a run on the pages of a Prefect server, and of its report, with headless Chromium, for docs/.

    python tests/demo/screenshot.py RECIPE [--folder docs/images]

Needs Chromium on the PATH (Debian: apt-get install chromium).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from eigenmerge.core.formats.file_names import REPORT_NAME

BIN = Path(sys.executable).parent


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("docs/images"), help="where the pictures go")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        print("screenshot: no Chromium on the PATH; on Debian: apt-get install chromium", file=sys.stderr)
        return 1
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "PREFECT_HOME": folder,
            "PREFECT_API_URL": f"{url}/api",
            "PREFECT_UI_API_URL": f"{url}/api",
            "PREFECT_SERVER_UI_API_URL": f"{url}/api",  # otherwise the page uses port 4200
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
        }
        server = subprocess.Popen(
            [str(BIN / "prefect"), "server", "start", "--port", str(port)], env=environment, stdout=subprocess.DEVNULL
        )
        try:
            wait_for(f"{url}/api/health")
            merge = [
                str(BIN / "eigenmerge"),
                "merge",
                str(arguments.recipe),
                f"{folder}/merged",
                "--store",
                f"{folder}/store",
            ]
            subprocess.run(merge, env=environment, check=True)
            report = Path(folder) / "merged" / REPORT_NAME
            take(chromium, report.as_uri(), arguments.folder / "report.png", Path(folder), size="1100,1450")
            run = post(f"{url}/api/flow_runs/filter", {"limit": 1})[0]
            take(chromium, f"{url}/runs/flow-run/{run['id']}", arguments.folder / "prefect-run.png", Path(folder))
            for artifact in post(f"{url}/api/artifacts/filter", {}):
                if artifact["key"] in ("layers", "report"):
                    picture = arguments.folder / f"prefect-{artifact['key']}.png"
                    take(chromium, f"{url}/artifacts/artifact/{artifact['id']}", picture, Path(folder))
        finally:
            server.terminate()
            server.wait(20)
    return 0


def wait_for(url: str) -> None:
    for _ in range(600):
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise SystemExit("screenshot: the server did not start within two minutes")


def post(url: str, body: dict[str, object]) -> list[dict[str, str]]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as response:
        return json.load(response)


def take(chromium: str, page: str, out: Path, folder: Path, size: str = "1400,1000") -> None:
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--hide-scrollbars", *quiet]
    command += [f"--user-data-dir={folder}/profile", f"--window-size={size}", "--virtual-time-budget=20000"]
    subprocess.run(
        [*command, f"--screenshot={out.resolve()}", page], check=True, stderr=subprocess.DEVNULL, timeout=120
    )
    print(out)


if __name__ == "__main__":
    sys.exit(main())
