"""`python _sdist.py PACKAGE FILE FOLDER`: download one file of a package with pip's own session, and stop there.

`pip download` prepares what it downloads, and to prepare a source archive is to run its setup.py, even with --no-deps
and before its hash is compared with anything of ours. No option of pip turns that off. So pip is used up to the
download only: its configured indexes, find-links, proxies, certificates and credentials. This is pip's private
interface, hence a process of its own and an exit status (4) that says so when it has changed; wheels never come this
way.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(package: str, file: str, folder: str) -> int:
    try:
        from pip._internal.commands import create_command
        from pip._internal.network.utils import HEADERS, response_chunks

        command = create_command("download")
        options, _ = command.parse_args(["--no-cache-dir", "--no-input", "--disable-pip-version-check"])
        with command.main_context():
            session = command.get_default_session(options)  # type: ignore[attr-defined]
            finder = command._build_package_finder(options, session)  # type: ignore[attr-defined]
            links = [found.link for found in finder.find_all_candidates(package)]
            matching = [link for link in links if link.filename == file]
            if not matching:
                print(f"the index has no file {file} of {package} ({len(links)} others)", file=sys.stderr)
                return 3
            url = matching[0].url.split("#", 1)[0]
            response = session.get(url, headers=HEADERS, stream=True)
            response.raise_for_status()
            with (Path(folder) / file).open("wb") as out:
                for chunk in response_chunks(response):
                    out.write(chunk)
    except (ImportError, AttributeError, TypeError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 4
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
