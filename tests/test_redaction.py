"""What is told of an address: everything but what is secret, whatever stands around it."""

import base64

import pytest

from tasks import command
from tasks.redaction import parted, redact

SECRET = "s3sam/e@open#7"
HOSTS = ("127.0.0.1:5000/a/b", "mlflow.example.org", "[::1]:8080/path?x=1", "h/db?sslmode=require")
AROUND = ("{}", "MLflow at {} does not answer: refused", "ValueError('{}')", 'url="{}"; retry', "{}\n{}")


@pytest.mark.parametrize(
    "scheme", ["http", "https", "postgresql", "mysql+pymysql", "mssql+pyodbc", "ssh", "s3", "redis"]
)
@pytest.mark.parametrize(
    "userinfo", ["me:s3same", "me:s3same@x", "me:s3/same", "me:s3%2Fsame%40", ":s3same", "s3same", "m%40e:s3same:1"]
)
def test_what_stands_before_a_host_is_never_told_and_all_else_is(scheme, userinfo):
    for host in HOSTS:
        for around in AROUND:
            text = redact(around.replace("{}", f"{scheme}://{userinfo}@{host}"))
            assert text == around.replace("{}", f"{scheme}://{host}")
            assert redact(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "http://host:8080/a@b",
        "http://host/a@b?c=d@e",
        "sqlite:////home/me/mlflow.db",
        "me@example.org wrote to you@example.org: see http://host/",
        "models:/sampler@production",
        "loss 0.31  key=value, a token of 3 words",
        "http://host?keyword=a&monkey=b",
        "",
    ],
)
def test_what_holds_no_secret_is_told_as_it_is(text):
    assert redact(text) == text


@pytest.mark.parametrize(
    "name", ["token", "access_token", "password", "passwd", "pwd", "secret", "api_key", "apikey", "key"]
)
def test_a_query_parameter_that_is_a_key_is_not_told(name):
    for text in (f"https://h/a?x=1&{name}=s3same&y=2", f"Max retries with url: /a?{name.upper()}=s3same (Caused by x)"):
        assert "s3same" not in redact(text)
        assert redact(text) == text.replace("s3same", "***")


def test_a_header_is_not_told():
    assert redact("{'Authorization': 'Basic bWU6czNz'}") == "{'Authorization': 'Basic ***'}"
    assert redact("Authorization: Bearer abc.def") == "Authorization: Bearer ***"


@pytest.mark.parametrize("variable", ["MLFLOW_TRACKING_URI", "PREFECT_API_URL", "A_DATABASE"])
def test_a_password_of_the_environment_is_told_nowhere(monkeypatch, variable):
    monkeypatch.setenv(variable, "postgresql://me:s3same%2Fopen@h/db")
    shown = base64.b64encode(b"me:s3same/open").decode()
    for form in ("s3same%2Fopen", "s3same/open", shown):
        assert (
            redact(f"password authentication failed for '{form}' on h")
            == "password authentication failed for '***' on h"
        )
    assert redact("s3same%2Fopener") == "s3same%2Fopener"  # part of another word


@pytest.mark.parametrize("password", ["s3 same", "s3/sa me", "s3@sa/m e", "s3:sa:me"])
def test_a_password_that_nobody_encoded_is_told_nowhere(monkeypatch, password):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{password}@h:5000/a")
    assert (
        redact(f"MLflow at http://me:{password}@h:5000/a refuses {password}") == "MLflow at http://h:5000/a refuses ***"
    )


def test_a_name_is_no_secret(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "frontier")
    assert redact("the frontier of frontier") == "the frontier of frontier"


@pytest.mark.parametrize("token", ["t0kenOfMine", "t0ken%40mine"])
def test_a_name_alone_in_an_address_is_a_key_and_told_nowhere(monkeypatch, token):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://{token}@h/a")
    for form in {token, token.replace("%40", "@")}:
        assert redact(f"403: {form} may not") == "403: *** may not"


def test_an_address_without_a_password_blots_nothing_out(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://h:5000/a@b")
    assert redact("h:5000/a and 5000/a") == "h:5000/a and 5000/a"


@pytest.mark.parametrize(
    "variable", ["MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "PREFECT_API_KEY", "PREFECT_API_AUTH_STRING"]
)
def test_a_variable_that_is_a_password_is_told_nowhere(monkeypatch, variable):
    monkeypatch.setenv(variable, "s3same:open")
    assert redact("refused: s3same:open.") == "refused: ***."


def test_of_a_password_that_begins_as_another_nothing_is_left(monkeypatch):
    monkeypatch.setenv("PREFECT_API_KEY", "s3same")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "s3same-open")
    monkeypatch.setenv("DVC_SECRET", "more-s3same")
    assert redact("s3same, s3same-open, more-s3same") == "***, ***, ***"


def test_a_short_password_does_not_blot_out_other_words(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a")
    assert redact("a frontier of a teacher") == "a frontier of a teacher"


@pytest.mark.parametrize(
    ("address", "wanted"),
    [
        ("https://me:s3%40same@h:8/a?b=c", ("https://h:8/a?b=c", "me", "s3@same")),
        ("http://t0ken@h", ("http://h", "t0ken", "")),
        ("http://h:5000", ("http://h:5000", "", "")),
        ("http://me:p@ss@[::1]:5000/", ("http://[::1]:5000/", "me", "p@ss")),
    ],
)
def test_an_address_is_parted_from_its_password(address, wanted):
    assert parted(address) == wanted


@pytest.mark.parametrize(
    "address", ["http://", "http://[", "http://host:port", "http://host:99999", "http://me:x@", "http:///a"]
)
def test_what_is_no_address_is_an_error(address):
    with pytest.raises(ValueError, match=r"\w"):
        parted(address)


def test_the_command_line_tells_no_password(capsys):
    assert command._print_error("MLflow at http://me:s3same@h/ is down\nand out") == 2
    assert capsys.readouterr().err == "error: MLflow at http://h/ is down\nerror: and out\n"


@pytest.mark.parametrize("owner", ["MLFLOW", "PREFECT", "DVC"])
@pytest.mark.parametrize("kind", ["PASSWORD", "TOKEN", "SECRET", "API_KEY", "AUTH_STRING"])
def test_every_variable_that_is_named_for_a_password_is_one(monkeypatch, owner, kind):
    for name in (f"{owner}_{kind}", f"{owner}_SERVER_{kind}"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "s3same")
            assert redact("it is s3same") == "it is ***"
            patch.setenv(name, "s3s4")
            assert redact("it is s3s4") == "it is ***"
            patch.setenv(name, "s3s")  # part of too many words
            assert redact("it is s3s") == "it is s3s"


@pytest.mark.parametrize(
    "name",
    ["signature", "X-Amz-Signature", "x-amz-credential", "client_secret", "access-key", "accesskey", "sig", "pass"],
)
def test_so_are_the_keys_of_clouds_in_an_address(name):
    assert redact(f"https://h/a?{name}=s3same&y=2;{name}=s3same#z") == f"https://h/a?{name}=***&y=2;{name}=***#z"


def test_a_name_and_its_password_are_not_told_as_a_header_carries_them(monkeypatch):
    carried = base64.b64encode(b"me:s3same").decode()
    for found in (
        {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "s3same"},
        {"PREFECT_API_AUTH_STRING": "me:s3same"},
    ):
        with monkeypatch.context() as patch:
            for name, value in found.items():
                patch.setenv(name, value)
            assert redact(f"sent {carried}, s3same for me") == "sent ***, *** for me"


def test_an_address_that_nobody_can_listen_at_is_none():
    for address in ("http://h:0", "ftp://h", "h:80", ""):
        with pytest.raises(ValueError, match="it must be http://HOST"):
            parted(address)
    assert parted("https://h:1/a?b#c") == ("https://h:1/a?b#c", "", "")
