"""The commands `compare`, `choose` and `bench`."""

import csv
import io
import json
import re
import subprocess
import sys

import pytest
from support.embedders import MINILM, needs_local_model
from support.inputs import MODEL, lines, pages

from embedkit_core.cli.console import BUDGET, FAILED, REFUSED, USAGE

BLOCKED = "import sys; sys.modules[sys.argv.pop(1)] = None; from embedkit_core.cli import main; main()"


@pytest.mark.parametrize("command", ["compare", "choose", "bench"])
def test_without_the_tools_extra_a_command_sends_nothing(server, tmp_path, command):
    texts = [MODEL, "--texts", str(pages(tmp_path))]
    options = {"compare": texts, "choose": [*texts, "--floor", "0"], "bench": ["-m", MODEL]}[command]
    arguments = [sys.executable, "-c", BLOCKED, "ir_measures", command, "--yes", *options]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, server.requests) == (USAGE, "", [])
    assert done.stderr == (
        f"rag-embedkit: {command} needs the extra [tools], which is not installed. "
        'Run: pip install "rag-embedkit[tools]"\n'
    )


def test_compare_choose_and_bench_print_their_results(shell, tmp_path):
    pages(tmp_path)
    pictures = ["--chart", "chart.svg", "--report", "report.html", "--csv", "numbers.csv"]
    code, out, err = shell("compare", MODEL, "--texts", "pages", "--dimensions", "own,256,5000", "-y", *pictures)
    assert code == 0, err
    assert out.count(f"| {MODEL}") == 2
    assert f"{MODEL} 5000 float32: --dimensions: text-embedding-3-small does not offer 5000 dimensions" in out
    assert all((tmp_path / name).stat().st_size > 300 for name in ("chart.svg", "report.html", "numbers.csv"))
    code, out, _ = shell("compare", MODEL, "--texts", "pages", "-y", "--json", "-q")
    assert json.loads(out)["models"][0]["model"] == MODEL
    code, out, _ = shell("choose", MODEL, "--texts", "pages", "--floor", "0", "-y", "--corpus-texts", "1000000", "-q")
    assert code == 0
    assert out.endswith(f'Embedder("{MODEL}", dimensions=1536, dtype="float32")\n')
    assert shell("choose", MODEL, "--texts", "pages", "--floor", "1", "-y", "-q")[0] == 1
    assert shell("compare", MODEL, "--texts", "pages", "--dimensions", "5000", "-y", "-q")[0] == 1
    code, out, err = shell("bench", "-m", MODEL, "--sizes", "20,40", "--most", "2", "-y", "--chart", "bench.png")
    assert code == 0, err
    assert "use --max-concurrency " in out
    assert (tmp_path / "bench.png").stat().st_size > 5000


@pytest.mark.skipif(sys.platform != "linux", reason="needs POSIX processes")
def test_a_full_disk_is_one_error_line_and_the_table_is_printed(shell):
    code, out, err = shell("models", "--csv", "/dev/full")
    assert (code, err) == (FAILED, "rag-embedkit: No space left on device (/dev/full)\n")
    assert MODEL in out


def test_csv_on_standard_output_replaces_the_table(shell, tmp_path):
    pages(tmp_path)
    choose = ("choose", MODEL, "openai:text-embedding-ada-002", "--texts", "pages", "--floor", "0", "-y", "-q")
    rows = list(csv.DictReader(io.StringIO(shell(*choose, "--csv", "-")[1])))
    options = json.loads(shell(*choose, "--json")[1])["options"]
    assert [row["model"] for row in rows] == [option["model"] for option in options]
    assert [row["chosen"] for row in rows] == ["True", "False"]
    assert float(rows[0]["total_usd"]) == float(options[0]["total_usd"]) > 0
    code, out, err = shell("bench", "-m", MODEL, "--sizes", "20", "--most", "1", "-y", "-q", "--csv", "-")
    assert [row["texts"] for row in csv.DictReader(io.StringIO(out))] == ["20"], err
    code, out, err = shell("models", "--csv", "-", "--json")
    assert (code, out, err) == (USAGE, "", "rag-embedkit: --csv -: contradicts --json. Remove one of them.\n")


def test_bench_asks_for_confirmation_with_its_estimate(shell, server):
    asked = shell("bench", "-m", MODEL, "--sizes", "20,40", "--most", "2")
    assert (asked[0], server.requests) == (REFUSED, [])
    told = shell("bench", "-m", MODEL, "--sizes", "20,40", "--most", "2", "-y")[2].splitlines()[0]
    assert asked[2] == f"rag-embedkit: confirmation required to measure {told}. Add --yes to proceed.\n"
    named = int(told.partition("up to ")[2].partition(" ")[0].replace(",", ""))
    assert server.billed_tokens <= named * 1.2


def test_a_comparison_stopped_by_a_budget_has_the_exit_code_of_a_budget(shell, server, tmp_path):
    texts = [f"{i} a b c d e f g h i j k l m n o p q r s t u v w x y z {i} " * 2 for i in range(20)]
    source = lines(tmp_path / "in.txt", texts)  # more tokens than estimated
    compare = ("compare", MODEL, "--texts", source, "-y", "-q", "--budget-usd")
    code, out, err = shell(*compare, "0.0000001")
    assert (code, out, server.requests) == (BUDGET, "", [])
    estimate = re.search(r"about \$([\d.]+)", err)[1]
    code, out, _ = shell(*compare, estimate)
    assert (code, f"The budget of ${estimate}" in out) == (BUDGET, True)


def test_choose_prints_the_base_url_of_the_comparison(shell, server, tmp_path):
    pages(tmp_path)
    asked = ["--texts", "pages", "--floor", "0", "-y", "-q", "--base-url", server.base_url]
    code, out, _ = shell("choose", MODEL, *asked)
    assert code == 0
    assert out.endswith(f'Embedder("{MODEL}", dimensions=1536, dtype="float32", base_url="{server.base_url}")\n')
    assert json.loads(shell("choose", MODEL, *asked, "--json")[1])["chosen"]["base_url"] == server.base_url


def test_the_price_of_a_model_without_one_is_set_by_its_name(shell, server, tmp_path):
    pages(tmp_path)
    choose = ("choose", "openai:unheard", MODEL, "--texts", "pages", "--floor", "0", "-y", "-q", "--json")
    options = json.loads(shell(*choose)[1])["options"]
    assert [option["rejected"] for option in options] == [None, "price unknown; set --price"]
    options = json.loads(shell(*choose, "--price", "openai:unheard=0.01")[1])["options"]
    assert [(option["model"], option["rejected"]) for option in options] == [("openai:unheard", None), (MODEL, None)]
    sent = len(server.requests)
    for wrong in ("0.01", "openai:other=0.01", "openai:unheard=x"):
        code, _, err = shell(*choose, "--price", wrong)
        assert (code, err.startswith("rag-embedkit: --price")) == (USAGE, True), err
    assert len(server.requests) == sent


@needs_local_model
def test_a_local_model_is_compared_with_one_at_a_base_url(shell, server, tmp_path):
    pages(tmp_path)
    compared = shell("compare", MODEL, MINILM, "--texts", "pages", "-y", "-q", "--json", "--base-url", server.base_url)
    assert [model["error"] for model in json.loads(compared[1])["models"]] == [None, None]
