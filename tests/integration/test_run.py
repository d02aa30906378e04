"""`fedlog run` as a person uses it: real processes, the embedded broker, scikit-learn's digits."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml

import fedlog
from fedlog import exit_codes
from fedlog.job.errors import JobError
from fedlog.telemetry.run_folder import read_metrics
from fedlog.transport.embedded import EmbeddedBroker
from processes import gone, until

WITHIN_S = 240.0


def digits(**spec: object) -> dict[str, object]:
    """A job that is over in seconds: four clients, three rounds, a linear model."""
    return {
        "apiVersion": "fedlog.dev/v1alpha1",
        "kind": "FederatedJob",
        "metadata": {"name": "digits"},
        "spec": {
            "task": {
                "entrypoint": "fedlog.tasks.digits:task",
                "parameters": {"model": "sklearn"},
            },
            "rounds": 3,
            "seed": 1,
            "partitioning": {"name": "Iid"},
            "training": {"localEpochs": 2, "batchSize": 10, "learningRate": "0.1"},
            "evaluation": {"heldOut": {}},
            "clients": [{"name": "site", "replicas": 4}],
            **spec,
        },
    }


@pytest.fixture
def job(tmp_path: Path):
    def write(*documents: dict[str, object]) -> Path:
        path = tmp_path / "federatedjob.yaml"
        path.write_text(yaml.safe_dump_all(documents or [digits()]))
        return path

    return write


@pytest.fixture
def start(tmp_path: Path):
    """Starts `fedlog run` in the background; whatever is left of it is killed after the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str | Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "fedlog", "run", *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={k: v for k, v in os.environ.items() if k != "BOOTSTRAP_SERVERS"},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with process:
            if process.poll() is None:
                process.kill()


@pytest.fixture
def run(start):
    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        process = start(*arguments)
        out, err = process.communicate(timeout=WITHIN_S)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run


def descendants(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def with_argument(process: subprocess.Popen[str], argument: str) -> psutil.Process | None:
    """The child that was started with this argument, once there is one."""
    for child in descendants(process):
        with suppress(psutil.NoSuchProcess):  # ended meanwhile, or is a zombie
            if argument in child.cmdline():
                return child
    return None


def in_training(tmp_path: Path) -> bool:
    metrics = tmp_path / "runs" / "latest" / "metrics.jsonl"
    return metrics.exists() and any(report.round > 0 for report in read_metrics(metrics))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One whole run: what it printed, and its folder."""
    here = tmp_path_factory.mktemp("finished")
    (here / "federatedjob.yaml").write_text(yaml.safe_dump(digits()))
    done = subprocess.run(
        [sys.executable, "-m", "fedlog", "run", "federatedjob.yaml"],
        capture_output=True,
        text=True,
        cwd=here,
        env={k: v for k, v in os.environ.items() if k != "BOOTSTRAP_SERVERS"},
        timeout=WITHIN_S,
        check=False,
    )
    assert done.returncode == exit_codes.OK, done.stdout + done.stderr
    return done.stdout + done.stderr, here / "runs" / "latest"


def test_a_job_runs_to_its_end(finished):
    _, folder = finished
    result = json.loads((folder / "result.json").read_text())
    assert (result["outcome"], result["rounds"]) == ("Complete", 3)
    assert result["participation"] == {f"site/{i}": 3 for i in range(4)}
    assert result["metrics"]["HeldOut"]["accuracy"] > 0.8
    assert result["metrics"]["Clients"]["accuracy"] > 0.8
    reports = [r for r in read_metrics(folder / "metrics.jsonl") if r.round > 0]
    assert [report.round for report in reports] == [1, 2, 3]
    losses = [report.evaluations["HeldOut"].metrics["loss"] for report in reports]
    assert losses[-1] < losses[0]


def test_a_run_folder_holds_all_that_is_left(finished):
    _, folder = finished
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "checkpoints",
        "job.yaml",
        "logs",
        "metrics.jsonl",
        "model.safetensors",
        "report.html",
        "result.json",
        "run.json",
    }, "no model.keras of a scikit-learn model, and nothing temporary"
    assert {path.name for path in (folder / "logs").iterdir()} >= {"server.log", "worker-0.log"}


def test_without_a_terminal_there_are_plain_lines(finished):
    said, folder = finished
    assert "\x1b" not in said
    rounds = [line for line in said.splitlines() if line.startswith("round ")]
    assert len(rounds) == 3
    assert all("accuracy" in line and "(held out)" in line for line in rounds)
    assert said.splitlines()[0] == f"run folder: runs/{folder.resolve().name}"
    assert said.splitlines()[-1] == f"report: runs/{folder.resolve().name}/report.html"


def test_set_changes_the_job_and_isolate_the_processes(job, run, tmp_path):
    done = run(job(), "--isolate", "--set", "rounds=1", "--set", "clients.site.replicas=2")
    assert done.returncode == exit_codes.OK, done.stderr
    folder = tmp_path / "runs" / "latest"
    assert yaml.safe_load((folder / "job.yaml").read_text())["spec"]["rounds"] == 1
    result = json.loads((folder / "result.json").read_text())
    assert result["participation"] == {"site/0": 1, "site/1": 1}
    logs = {path.name for path in (folder / "logs").iterdir()}
    assert {"site-0.log", "site-1.log", "evaluator-0.log"} <= logs


def test_a_task_of_a_config_map_in_the_same_file(job, run):
    module = (
        "from fedlog.tasks.digits import task as digits\n"
        "class Own:\n"
        "    def model(self, parameters, seed):\n"
        "        return digits.model({'model': 'sklearn'}, seed)\n"
        "    def data(self, partition, parameters):\n"
        "        return digits.data(partition, {'model': 'sklearn'})\n"
        "task = Own()\n"
    )
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "own"},
        "data": {"own_task.py": module},
    }
    task = {"entrypoint": "own_task.py:task", "source": {"configMap": "own"}}
    done = run(job(digits(task=task, evaluation={}, rounds=1), config_map))
    assert done.returncode == exit_codes.OK, done.stdout + done.stderr
    assert "ConfigMap own: " in done.stdout


def test_a_failed_job_says_why_and_exits_1(job, run, tmp_path):
    # Nobody is done before the deadline.
    participation = {"minClients": 4, "onTimeout": "Fail", "roundTimeoutSeconds": 1}
    task = {"entrypoint": "slow_task.py:task"}
    (tmp_path / "slow_task.py").write_text(
        "import time\n"
        "from fedlog.tasks.digits import task as digits\n"
        "class Learner:\n"
        "    def __init__(self, inner): self.inner = inner\n"
        "    def __getattr__(self, name): return getattr(self.inner, name)\n"
        "    def fit(self, data, config):\n"
        "        while not config.should_stop(): time.sleep(0.01)\n"
        "        return self.inner.fit(data, config)\n"
        "class Slow:\n"
        "    def model(self, parameters, seed):\n"
        "        return Learner(digits.model({'model': 'sklearn'}, seed))\n"
        "    def data(self, partition, parameters):\n"
        "        return digits.data(partition, {'model': 'sklearn'})\n"
        "task = Slow()\n"
    )
    done = run(job(digits(task=task, evaluation={}, participation=participation)))
    assert done.returncode == exit_codes.FAILED, done.stdout + done.stderr
    result = json.loads((tmp_path / "runs" / "latest" / "result.json").read_text())
    assert result["outcome"] == "Failed"
    assert result["reason"] in done.stdout
    assert (tmp_path / "runs" / "latest" / "report.html").exists()


def test_a_task_that_cannot_be_loaded_is_one_error(job, run):
    done = run(job(digits(task={"entrypoint": "gone.py:task"})))
    assert done.returncode == exit_codes.TASK
    assert done.stderr.startswith("error: ")
    assert "gone.py" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, exit_codes.INTERRUPTED), (signal.SIGTERM, exit_codes.TERMINATED)],
    ids=["Ctrl-C", "SIGTERM"],
)
def test_an_interrupted_run_leaves_no_process(job, start, tmp_path, number, code):
    process = start(job(digits(rounds=10_000)))
    until(lambda: in_training(tmp_path), "the first round", WITHIN_S)
    children = descendants(process)
    assert len(children) >= 4, "broker, its guard, server and at least one worker"
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == code
    assert [child for child in children if not gone(child)] == []


def test_a_killed_run_leaves_no_process(job, start, tmp_path):
    process = start(job(digits(rounds=10_000)))
    until(lambda: in_training(tmp_path), "the first round", WITHIN_S)
    children = descendants(process)
    process.kill()
    process.communicate(timeout=30)
    until(lambda: all(gone(child) for child in children), "the end of every child", 30)


def test_what_does_not_fit_into_memory_is_refused_before_anything_starts(job, run, tmp_path):
    task = {"entrypoint": "fedlog.tasks.noop:task", "parameters": {"sizeBytes": 1_000_000}}
    clients = [{"name": "site", "replicas": 100_000}]
    done = run(job(digits(task=task, clients=clients, partitioning=None, evaluation={})))
    assert done.returncode == exit_codes.FAILED
    assert "300.0 GB" in done.stderr
    assert "--broker" in done.stderr
    logs = {path.name for path in (tmp_path / "runs" / "latest" / "logs").iterdir()}
    assert logs == {"initial.log"}


def test_a_killed_server_is_started_again_and_nobody_trains_twice(job, start, tmp_path):
    process = start(job(digits(rounds=40)))
    until(lambda: in_training(tmp_path), "the first round", WITHIN_S)
    server = with_argument(process, "--status-file")
    assert server is not None
    server.kill()
    out, err = process.communicate(timeout=WITHIN_S)
    assert process.returncode == exit_codes.OK, out + err
    (line,) = [line for line in out.splitlines() if line.startswith("server died")]
    assert re.fullmatch(r"server died \(SIGKILL\) in round \d+, started again \(1/5\)", line)
    folder = tmp_path / "runs" / "latest"
    reports = [r for r in read_metrics(folder / "metrics.jsonl") if r.round > 0]
    assert [report.round for report in reports] == list(range(1, 41))
    assert all(len(report.participants) == 4 for report in reports)
    log = (folder / "logs" / "server.log").read_text()
    assert log.count("---- server is started again") == 1


def test_a_server_that_dies_too_often_ends_the_run_and_is_named(job, start):
    process = start(job(digits(rounds=10_000, failurePolicy={"maxServerRestarts": 0})))
    until(lambda: with_argument(process, "--status-file") is not None, "the server's start")
    children = descendants(process)
    server = with_argument(process, "--status-file")
    assert server is not None
    server.kill()
    _, err = process.communicate(timeout=60)
    assert process.returncode == exit_codes.FAILED
    assert "server was killed (SIGKILL)" in err
    assert "failurePolicy.maxServerRestarts is 0" in err
    assert [child for child in children if not gone(child)] == []


def test_a_killed_worker_is_started_again(job, start, tmp_path):
    process = start(job(digits(rounds=30, participation={"minClients": 4})))
    until(lambda: in_training(tmp_path), "the first round", WITHIN_S)
    worker = with_argument(process, "--clients")
    assert worker is not None
    worker.kill()
    out, err = process.communicate(timeout=WITHIN_S)
    assert process.returncode == exit_codes.OK, out + err
    (line,) = [line for line in out.splitlines() if line.startswith("worker-0 died")]
    assert line.endswith("started again (1/5)")
    reports = [r for r in read_metrics(tmp_path / "runs/latest/metrics.jsonl") if r.round > 0]
    assert {len(report.participants) for report in reports} == {4}


def test_a_lost_worker_is_named_and_without_quorum_the_run_ends(job, start, tmp_path):
    participation = {"minClients": 4, "lostAfterSeconds": 600}
    failures = {"maxClientRestarts": 0}
    process = start(job(digits(rounds=10_000, participation=participation, failurePolicy=failures)))
    until(lambda: in_training(tmp_path), "the first round", WITHIN_S)
    began = time.monotonic()
    worker = with_argument(process, "--clients")
    assert worker is not None
    worker.kill()
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 30, "long before the client's deadline"
    assert process.returncode == exit_codes.FAILED
    assert err.startswith("error: 2 of 4 clients are left, and a round needs 4")
    assert "worker-" in err
    assert "SIGKILL" in err
    result = json.loads((tmp_path / "runs" / "latest" / "result.json").read_text())
    assert result["outcome"] == "Failed"


def test_a_lost_worker_is_named_and_with_quorum_the_run_goes_on(job, start, tmp_path):
    participation = {"minClients": 1, "heartbeatSeconds": 1, "lostAfterSeconds": 2}
    failures = {"maxClientRestarts": 0}
    path = job(
        digits(rounds=100, evaluation={}, participation=participation, failurePolicy=failures)
    )
    process = start(path)
    until(lambda: in_training(tmp_path), "the first round", WITHIN_S)
    worker = with_argument(process, "--clients")
    assert worker is not None
    worker.kill()
    out, err = process.communicate(timeout=WITHIN_S)
    assert process.returncode == exit_codes.OK, out + err
    assert "lost site/0, site/2: worker-0 was killed (SIGKILL)" in out
    reports = read_metrics(tmp_path / "runs" / "latest" / "metrics.jsonl")
    assert set(reports[-1].participants) == {"site/1", "site/3"}


def test_more_lost_clients_than_allowed_end_the_run(job, start, tmp_path):
    failures = {"maxClientRestarts": 0, "maxLostClients": 1}
    participation = {"minClients": 1, "heartbeatSeconds": 1, "lostAfterSeconds": 2}
    process = start(job(digits(rounds=10_000, participation=participation, failurePolicy=failures)))
    until(lambda: in_training(tmp_path), "the first round", WITHIN_S)
    worker = with_argument(process, "--clients")
    assert worker is not None
    worker.kill()
    _, err = process.communicate(timeout=60)
    assert process.returncode == exit_codes.FAILED
    assert err.startswith("error: 2 of 4 clients are lost, and failurePolicy.maxLostClients is 1")


def test_the_embedded_brokers_death_ends_the_run_and_says_what_to_use(job, start, tmp_path, run):
    process = start(job(digits(rounds=10_000)))
    until(lambda: in_training(tmp_path), "the first round", WITHIN_S)
    children = descendants(process)
    (broker,) = [child for child in children if "tansu" in child.name()]
    broker.kill()
    _, err = process.communicate(timeout=60)
    assert process.returncode == exit_codes.UNAVAILABLE
    assert err.startswith("error: the embedded broker ended (SIGKILL)")
    assert "--broker HOST:PORT of a Kafka" in err
    assert [child for child in children if not gone(child)] == []
    resumed = run("--resume", "runs/latest")
    assert resumed.returncode == exit_codes.USAGE
    assert "cannot go on: its log was in the embedded broker" in resumed.stderr
    assert "--broker HOST:PORT of a Kafka" in resumed.stderr


def test_a_run_goes_on_after_everything_of_it_was_killed(
    job, start, run, tmp_path, embedded_broker
):
    """The broker is one that outlives the run; the folder and the log are all that is left."""
    path = job(digits(rounds=40))
    process = start(path, "--broker", embedded_broker.bootstrap_servers)
    until(lambda: in_training(tmp_path), "the first round", WITHIN_S)
    busy = run("--resume", "runs/latest")
    assert busy.returncode == exit_codes.USAGE
    assert "another process runs this run now" in busy.stderr
    children = descendants(process)
    process.kill()
    process.communicate(timeout=30)
    until(lambda: all(gone(child) for child in children), "the end of every child", 30)
    path.unlink()  # the job as resolved is in the run folder
    folder = (tmp_path / "runs" / "latest").resolve()
    before = {r.round: r.digest for r in read_metrics(folder / "metrics.jsonl")}

    resumed = run("--resume", "runs/latest")
    assert resumed.returncode == exit_codes.OK, resumed.stdout + resumed.stderr
    assert resumed.stdout.startswith(f"going on with runs/{folder.name}")
    assert len(list((tmp_path / "runs").iterdir())) == 2, "the folder and `latest`"
    after = {r.round: r.digest for r in read_metrics(folder / "metrics.jsonl")}
    assert sorted(after) == list(range(41))
    assert {number: after[number] for number in before} == before
    assert (folder / "report.html").exists()

    over = run("--resume", "runs/latest")
    assert over.returncode == exit_codes.OK
    assert over.stdout.startswith("this run is over: Complete, ")


def test_a_run_broken_off_goes_on_once_the_cause_is_mended(
    job, start, run, tmp_path, embedded_broker
):
    failures = {"maxServerRestarts": 0}
    path = job(digits(rounds=40, failurePolicy=failures))
    process = start(path, "--broker", embedded_broker.bootstrap_servers)
    until(lambda: in_training(tmp_path), "the first round", WITHIN_S)
    server = with_argument(process, "--status-file")
    assert server is not None
    server.kill()
    out, _ = process.communicate(timeout=60)
    assert process.returncode == exit_codes.FAILED
    folder = (tmp_path / "runs" / "latest").resolve()
    assert f"to go on: fedlog run --resume runs/{folder.name}" in out
    resumed = run("--resume", str(folder))
    assert resumed.returncode == exit_codes.OK, resumed.stdout + resumed.stderr
    assert json.loads((folder / "result.json").read_text())["outcome"] == "Complete"


def test_a_broker_without_the_runs_log_is_refused(job, start, run, tmp_path, embedded_broker):
    process = start(job(digits(rounds=10_000)), "--broker", embedded_broker.bootstrap_servers)
    until(lambda: in_training(tmp_path), "the first round", WITHIN_S)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    with EmbeddedBroker() as other:
        resumed = run("--resume", "runs/latest", "--broker", other.bootstrap_servers)
    assert resumed.returncode == exit_codes.USAGE
    assert "has no topics of this run" in resumed.stderr


def test_resume_takes_no_other_job(job, run):
    refused = run(job(), "--resume", "runs/latest", "--set", "rounds=1")
    assert refused.returncode == exit_codes.USAGE
    assert "leave out JOB, --set" in " ".join(refused.stderr.replace("│", " ").split())


def test_a_kept_broker_outlives_the_run(job, run):
    done = run(job(digits(rounds=1)), "--keep-broker")
    assert done.returncode == exit_codes.OK, done.stderr
    (note,) = [line for line in done.stdout.splitlines() if "stays" in line]
    pid = int(note.split("`kill ")[1].split("`")[0])
    broker = psutil.Process(pid)
    try:
        assert broker.is_running()
        again = run(job(digits(rounds=1)), "--broker", note.split("stays: ")[1].split(",")[0])
        assert again.returncode == exit_codes.OK, again.stderr
    finally:
        broker.terminate()
        until(lambda: gone(broker), "the end of the broker")


def test_from_python_with_a_document_and_a_callback(tmp_path):
    phases = []
    result = fedlog.run(
        digits(),
        overrides=["rounds=2"],
        runs=tmp_path,
        quiet=True,
        on_status=lambda status: phases.append(status.phase),
    )
    assert result.succeeded
    assert result.rounds == 2
    assert result.model_path is not None
    assert result.model_path.exists()
    assert phases


def test_a_script_without_a_main_guard(tmp_path):
    script = tmp_path / "sweep.py"
    script.write_text(
        "import fedlog, yaml\n"
        "job = yaml.safe_load(open('federatedjob.yaml'))\n"
        "for rate in ('0.05', '0.1'):\n"
        "    overrides = ['rounds=1', f'training.learningRate={rate}']\n"
        "    print(fedlog.run(job, overrides=overrides, quiet=True).outcome)\n"
    )
    (tmp_path / "federatedjob.yaml").write_text(yaml.safe_dump(digits()))
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=WITHIN_S,
        check=False,
    )
    assert done.stdout.split() == ["Complete", "Complete"], done.stderr


def test_a_task_object_is_refused_with_the_way_out():
    job = digits()
    job["spec"]["task"]["parameters"] = {"model": object()}
    with pytest.raises(JobError, match="entrypoint"):
        fedlog.run(job)
