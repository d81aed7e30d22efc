"""For a release: python docs/for_the_index.py URL [FOLDER] makes README's links absolute and names the project's URLs.

A package index shows README without the files beside it. URL: of the repository; the release workflow knows it.
"""

import re
import sys
from pathlib import Path


def main() -> None:
    """Change README.md and pyproject.toml of a checkout that is to be built."""
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
