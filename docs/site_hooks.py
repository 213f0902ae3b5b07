"""Hooks of mkdocs.yml: links to files outside of docs/, and formulas without a script."""

import html
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

ROOT = Path(__file__).parents[1]
# A link of Markdown whose target begins with ../
LINK = re.compile(r"(\]\()(\.\./[^)#\s]+)(#[^)]*)?\)")
# What pymdownx.arithmatex makes of $...$ and $$...$$.
FORMULA = re.compile(
    r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL | re.IGNORECASE
)


def on_page_markdown(markdown: str, page, config, files) -> str:
    """Point links that leave docs/ to the repository; such a file must be there."""

    def in_repository(link: re.Match) -> str:
        target = (ROOT / "docs" / page.file.src_uri).parent.joinpath(link[2]).resolve()
        if target.is_relative_to(ROOT / "docs"):
            return link[0]
        if not target.exists():
            raise PluginError(f"{page.file.src_uri}: the link {link[2]} leads nowhere")
        kind = "tree" if target.is_dir() else "blob"
        path = target.relative_to(ROOT).as_posix()
        return f"{link[1]}{config.extra['repository']}/{kind}/main/{path}{link[3] or ''})"

    return LINK.sub(in_repository, markdown)


def on_page_content(content: str, **_) -> str:
    """Turn formulas into MathML, which browsers show by themselves."""

    def to_mathml(formula: re.Match) -> str:
        display = "block" if formula[1] == "div" else "inline"
        return convert(html.unescape(formula[2]), display=display)

    return FORMULA.sub(to_mathml, content)
