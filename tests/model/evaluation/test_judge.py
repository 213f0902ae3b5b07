"""The judge of free answers, against a stand-in for an OpenAI-compatible server."""

import http.server
import json
import threading

import pytest

from helpers.published import mm_vet
from helpers.tiny_setokim import build
from setok_cli.main import main
from setokim.evaluation import judge as judge_module
from setokim.evaluation.judge import Judge, JudgeError


class Server(http.server.ThreadingHTTPServer):
    """Replies in turn: texts, status codes, or bytes of a body; the last one again and again."""

    def __init__(self, *replies):
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies, self.asked, self.keys = list(replies), [], []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, body))
        self.server.keys.append(self.headers["Authorization"])
        replies = self.server.replies
        reply = replies.pop(0) if len(replies) > 1 else replies[0]
        status = reply if isinstance(reply, int) else 200
        if isinstance(reply, str):
            reply = json.dumps({"choices": [{"message": {"content": reply}}]}).encode()
        data = b"busy" if isinstance(reply, int) else reply
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def serve():
    servers = []

    def start(*replies):
        server = Server(*replies)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def judge_of(server, tmp_path, **options):
    return Judge(server.url, "gpt", tmp_path / "cache.jsonl", wait=0, **options)


@pytest.mark.parametrize(
    ("reply", "expected"), [("0.3", 0.3), (" 1.0\n", 1), ("0", 0), (".5", 0.5), ("0.7 | fine", 0.7)]
)
def test_replies(reply, expected, serve, tmp_path):
    assert judge_of(serve(reply), tmp_path)("what?", "a dog", "dog") == expected


def test_what_is_sent(serve, tmp_path, monkeypatch):
    server = serve("1.0")
    monkeypatch.delenv(judge_module.KEY, raising=False)
    judge_of(server, tmp_path, prompt="Grade:")("what?", "a<OR>b<AND>c", "it is\na")
    monkeypatch.setenv(judge_module.KEY, "secret")
    judge_of(server, tmp_path)("what?", "a", "é")
    (path, body), (_, second) = server.asked
    assert path == "/v1/chat/completions" and body["model"] == "gpt" and body["temperature"] == 0
    content = "Grade:\nwhat? | a <OR> b <AND> c | it is\na | "
    assert body["messages"] == [{"role": "user", "content": content}]
    assert second["messages"][0]["content"].endswith("\nwhat? | a | é | ")
    assert server.keys == [None, "Bearer secret"]
    assert "secret" not in (tmp_path / "cache.jsonl").read_text()


def test_scores_are_kept(serve, tmp_path):
    server = serve("0.2", "0.4", "0.6", "0.8")
    judge = judge_of(server, tmp_path)
    assert [judge("a", "b", "c"), judge("a", "b", "d"), judge("a", "b", "c")] == [0.2, 0.4, 0.2]
    path = tmp_path / "cache.jsonl"
    # A run that was killed while writing the second.
    path.write_bytes(path.read_bytes()[:-7])
    judge = judge_of(server, tmp_path)
    assert [judge("a", "b", "c"), judge("a", "b", "d")] == [0.2, 0.6] and len(server.asked) == 3
    assert len(path.read_text().splitlines()) == 2
    # Another prompt is another question.
    assert judge_of(server, tmp_path, prompt="p")("a", "b", "c") == 0.8
    path.write_text('{"key": 3}\n')
    with pytest.raises(OSError, match=r"cache.jsonl:1: expected a score, got "):
        judge_of(server, tmp_path)


@pytest.mark.parametrize("failure", [429, 500, 503, b"{", b'{"choices": []}', "good", "1.5", "-1"])
def test_failures_that_pass(failure, serve, tmp_path):
    server = serve(failure, failure, "0.5")
    assert judge_of(server, tmp_path)("a", "b", "c") == 0.5 and len(server.asked) == 3


@pytest.mark.parametrize(
    ("failure", "attempts", "reason"),
    [
        (401, 1, "HTTP Error 401.*busy"),
        (404, 1, "HTTP Error 404"),
        (500, 3, "HTTP Error 500.*, in 3 attempts$"),
        ("fine", 3, "expected a score from 0 to 1, got 'fine', in 3"),
        ("0.5.6", 3, "expected a score"),
        (b'{"choices": [{"message": {"content": null}}]}', 3, "expected a text"),
    ],
)
def test_failures_that_stay(failure, attempts, reason, serve, tmp_path):
    server = serve(failure)
    with pytest.raises(JudgeError, match=reason):
        judge_of(server, tmp_path, retries=2)("a", "b", "c")
    assert len(server.asked) == attempts and not (tmp_path / "cache.jsonl").exists()


def test_a_server_that_is_not_there(tmp_path):
    judge = Judge("http://127.0.0.1:9/v1", "gpt", tmp_path / "cache", retries=1, wait=0)
    with pytest.raises(JudgeError, match=r"refused.*, in 2 attempts$"):
        judge("a", "b", "c")
    with pytest.raises(ValueError, match=r"^url: expected http://… or https://…, got 'file:///a'$"):
        Judge("file:///a", "gpt", tmp_path / "cache")


def test_the_command_resumes(serve, tmp_path, capsys, monkeypatch):
    data, model, out = (tmp_path / name for name in ("data", "model", "out"))
    data.mkdir()
    mm_vet(data)
    for part in build():
        part.save_pretrained(model)
    # Answers of the model differ, so that each is judged.
    server = serve("1.0", 404, "0.5", "0.0")
    where = ["eval", "--data", str(data), "--model", str(model), "--out", str(out)]
    judged = ["--judge-url", server.url, "--judge-model", "gpt", "--max-new-tokens", "2"]
    path = data / "mm-vet.json"
    questions = json.loads(path.read_text())
    for number, record in enumerate(questions.values()):
        record["question"] = f"what {number}?"
    path.write_text(json.dumps(questions))
    assert main([*where, "--benchmark", "mm-vet", *judged]) == 2
    error = capsys.readouterr().err
    assert "has all answers, no metrics: JudgeError" in error and "404" in error
    assert (out / "submission.json").exists() and not (out / "metrics.json").exists()
    assert main([*where, "--benchmark", "mm-vet", *judged]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    expected = {"total": 50.0, "rec": 50.0, "ocr": 100.0, "samples": 3, "broken": 0}
    assert {name: metrics[name] for name in expected} == expected and len(server.asked) == 4
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("Mine:\n")
    assert main([*where, "--benchmark", "mm-vet", *judged, "--judge-prompt", str(prompt)]) == 0
    assert server.asked[-1][1]["messages"][0]["content"].startswith("Mine:\nwhat 2? | a dog <OR> ")
    for options, reason in (
        (["mm-vet", *judged[:2]], "--judge-url: expected with --judge-model, got one of both"),
        (["mm-vet", "--judge-prompt", "a"], "--judge-prompt: expected with --judge-url, got it al"),
        (["gqa", *judged], "--judge-url: expected the benchmark mm-vet, got gqa"),
        (["mm-vet", "--judge-url", "ftp://a", *judged[2:]], "mm-vet: url: expected http://"),
    ):
        assert main([*where, "--benchmark", *options]) == 2
        assert reason in capsys.readouterr().err
