"""The command against real servers: short loads, real processes for Ctrl-C and pipes."""

import json
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner
from tests.models import save, tiny_mlp
from tests.serving import serving, small_repository

from farthing.cli.bench import command, sparks

pytest.importorskip("farthing._bench", reason="the native loop was not built")


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    with serving(small_repository(tmp_path_factory.mktemp("r"))) as server:
        yield server


def bench(*words):
    return CliRunner().invoke(command, [str(word) for word in words], catch_exceptions=True)


def test_a_sweep_gives_a_table_a_json_file_and_a_page(live, tmp_path):
    report, page = tmp_path / "r.json", tmp_path / "r.html"
    done = bench(live.url, "-m", "mlp", "-c", "1,2", "-d", "0.5", "--json", report, "--html", page)
    assert "2 connections" in done.output
    told = json.loads(report.read_text())
    assert told["schema"] == "farthing-bench/1"
    assert [run["load"] for run in told["runs"]] == [1, 2]
    assert all(run["figures"]["answered"] > 50 and not run["figures"]["errors"] for run in told["runs"])
    assert "api_key" not in told["settings"]
    html = page.read_text()
    assert html.count("<svg") >= 8
    assert '<div class="tile"><span>errors, all loads</span><b>0</b>' in html
    assert "http" not in html.replace(live.url, "").replace("'http'", "").replace(">http<", ""), "nothing is fetched"


def test_a_page_of_frames_has_a_bar_of_fates(live, tmp_path):
    page = tmp_path / "r.html"
    bench(live.url, "-m", "mlp", "--frames", "50", "--deadline", "20000", "-d", "0.3", "--html", page)
    assert '<i class="c4" style="flex:15" title="on time: 15">' in page.read_text()


def test_sparks_rise_with_the_rates():
    assert sparks([0.0, 50.0, 100.0]) == " \u2584\u2588"
    assert sparks([0.0, 0.0]) == "  "
    assert sparks([]) == ""


def test_an_open_load_of_a_mix_counts_goodput(live, tmp_path):
    report = tmp_path / "r.json"
    bench(live.url, "-m", "mlp:3,simple:1", "--rate", "300", "-d", "0.6", "--goal", "p99<2s", "--json", report)
    (run,) = json.loads(report.read_text())["runs"]
    assert run["figures"]["answered"] > 100
    assert run["figures"]["goodput"]["value"] == pytest.approx(run["figures"]["rate"]["value"])
    assert live.metric("nv_inference_request_success", model="simple") > 20


def test_a_search_and_a_comparison_say_what_they_found(live, tmp_path):
    report = tmp_path / "r.json"
    done = bench(live.url, "-m", "mlp", "--find", "p50<0.001ms", "-d", "0.2", "--json", report)
    assert json.loads(report.read_text())["found"]["load"] is None
    assert "not even the lowest load" in done.output
    bench(live.url, "-m", "mlp", "-c", "2", "--against", live.url, "--rounds", "3", "-d", "0.2", "--json", report)
    compared = json.loads(report.read_text())["compared"]
    assert len(compared["b_runs"]) == 3
    assert compared["ratios"]["requests/s"]["verdict"] in ("no difference seen", "A is higher", "A is lower")


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "models" / "mlp", tiny_mlp())
    return tmp_path / "models"


def test_a_model_in_process_needs_no_name_and_compares_with_its_server(live, folder, tmp_path):
    report = tmp_path / "r.json"
    done = bench(folder, "-c", "4", "-d", "0.2", "--rounds", "2", "-m", "mlp", "--against", live.url, "--json", report)
    told = json.loads(report.read_text())
    assert told["runs"][0]["label"] == "A round 1: 4 at once", done.output
    assert told["compared"]["ratios"]["requests/s"]["value"] > 0
    done = bench(folder, "-c", "2", "-d", "0.2")
    assert "2 at once" in done.output


def test_mlperf_keeps_loadgens_own_summary_beside_the_report(live, tmp_path):
    pytest.importorskip("mlperf_loadgen", reason="pip install farthing[mlperf]")
    report = tmp_path / "r.json"
    words = ("--mlperf", "server", "--rate", "400", "--goal", "p90<20s", "-c", "4", "-d", "0.5", "--json", report)
    done = bench(live.url, "-m", "mlp", *words)
    assert "MLPerf Server: VALID by LoadGen" in done.output, done.output
    told = json.loads(report.read_text())["mlperf"]
    assert told["result"] == "VALID"
    assert told["pairs"]["samples/s"]["loadgen"] > 0 < told["pairs"]["samples/s"]["farthing"]
    assert "Result is : VALID" in (tmp_path / "r.mlperf" / "mlperf_log_summary.txt").read_text()


def test_a_constant_stream_of_too_few_frames_is_not_judged(live):
    done = bench(live.url, "-m", "mlp", "--mlperf", "constant-stream", "--rate", "100", "-d", "0.3")
    assert "MLPerf ConstantStream: UNSURE by farthing" in done.output
    assert done.exit_code == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("http://127.0.0.1:1", "-m", "x"), "cannot be reached"),
        (("URL", "-m", "nobody"), "nobody"),
        (("URL", "-m", "mlp", "-c", "0"), "--concurrency 0"),
        (("URL", "-m", "mlp", "--rate", "fast"), "--rate fast"),
        (("URL", "-m", "mlp", "--find", "quick"), "`quick` is no target"),
        (("URL", "-m", "mlp", "--shape", "x:1,2"), "[1, 2] for input `x`"),
        (("URL", "-m", "mlp", "--trace", "t.csv"), "traces are of language models"),
        (("URL",), "which model?"),
        (("sample:nobody",), "nobody"),
        (("URL", "-m", "mlp", "--mlperf", "constant-stream"), "add --rate 30"),
        (("URL", "-m", "mlp", "--mlperf", "offline", "--find", "p99<1s"), "single requests by MLPerf's own rules"),
        (("URL", "-m", "mlp", "--frames", "10", "--rate", "5"), "--frames is a load of its own"),
        (("URL", "-m", "mlp,simple", "--frames", "10"), "to one model"),
    ],
)
def test_mistakes_are_told(live, words, said):
    done = bench(*(live.url if word == "URL" else word for word in words))
    assert said in str(done.exception)


def test_ctrl_c_ends_loadgen_at_once_and_says_so(folder):
    pytest.importorskip("mlperf_loadgen", reason="pip install farthing[mlperf]")
    start = "from farthing.cli.main import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", start, "bench", str(folder), "--mlperf", "single-stream", "-d", "60"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder.parent,
    )  # fmt: skip
    assert process.stderr.readline().startswith("warming up")
    assert process.stderr.readline().startswith("LoadGen")
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.strip() == "stopped; LoadGen ends no run before its time, so there is nothing to report"


def test_ctrl_c_reports_what_was_measured(live, tmp_path):
    start = "from farthing.cli.main import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", start, "bench", live.url, "-m", "mlp", "-c", "1", "-d", "60"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr.readline().startswith("1 connection")
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert "interrupted; this is what was measured until then" in out, err
    assert "\x1b" not in out, "no colours in a pipe"
