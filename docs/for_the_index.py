"""Prepare a release: python docs/for_the_index.py URL [FOLDER].

Makes the links of README.md absolute, because a package index shows it without the other files, and adds the URLs of
the project to pyproject.toml. URL is that of the repository; the release workflow passes it.
"""

import re
import sys
from pathlib import Path


def main() -> None:
    """Change README.md and pyproject.toml of a checkout before it is built."""
    url = sys.argv[1].rstrip("/")
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).parent.parent
    readme = folder / "README.md"
    text = re.sub(r"(!\[[^]]*\]\()(?!https?:)", rf"\g<1>{url}/raw/HEAD/", readme.read_text())
    readme.write_text(re.sub(r"((?<!!)\[[^]]*\]\()(?!https?:|#)", rf"\g<1>{url}/blob/HEAD/", text))
    project = folder / "pyproject.toml"
    urls = {"Source": url, "Documentation": f"{url}/tree/HEAD/docs", "Issues": f"{url}/issues"}
    urls["Changelog"] = f"{url}/blob/HEAD/CHANGELOG.md"
    table = "".join(f'{name} = "{where}"\n' for name, where in urls.items())
    project.write_text(project.read_text() + f"\n[project.urls]\n{table}")


if __name__ == "__main__":
    main()
