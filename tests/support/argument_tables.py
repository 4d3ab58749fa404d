"""Tables of arguments in the documentation; run as a program, it writes them into docs/."""

import re
from collections.abc import Mapping
from pathlib import Path

from embedkit_core.adapters.arguments import Alias, Ignored, Rule

DOCS = Path(__file__).parents[2] / "docs"
HEAD = "| argument | effect |\n|---|---|\n"


def argument_table(rules: Mapping[str, Rule]) -> str:
    """Return a table in Markdown: aliases first, then arguments without effect, then unsupported ones."""

    def effect(rule: Rule) -> str:
        if isinstance(rule, Alias):
            return f"same as `{rule.to}`" + (f", with a model `{rule.only}...`" if rule.only else "")
        return f"no effect. {rule.reason}" if isinstance(rule, Ignored) else f"not supported. {rule.fix}"

    ordered = sorted(rules.items(), key=lambda item: ["Alias", "Ignored", "Unsupported"].index(type(item[1]).__name__))
    return HEAD + "".join(f"| `{name}` | {effect(rule)} |\n" for name, rule in ordered)


if __name__ == "__main__":
    import langchain_embedkit.arguments
    import llamaindex_embedkit.arguments

    for document, rules in [
        ("langchain.md", langchain_embedkit.arguments.RULES),
        ("llamaindex.md", llamaindex_embedkit.arguments.RULES),
    ]:
        path = DOCS / document
        text = re.sub(re.escape(HEAD) + r"(\|.*\n)*", lambda _, r=rules: argument_table(r), path.read_text("utf-8"))
        path.write_text(text, "utf-8")
