"""The environment: read whole, refused whole, and never repeated where it is secret."""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from functools import reduce

import pytest

from server.settings import (
    KNOWN_MODELS,
    VARIABLES,
    Settings,
    SettingsError,
    StorageSettings,
    model_family,
    read_database_address,
)
from tests.support import LIMITS

QWEN = {
    "DATABASE_URL": "postgresql://app:hunter2@db.example.com/app",
    "DASHSCOPE_API_KEY": "sk-hunter2",
    "AUTH_JWT_SECRET": "hunter2-hunter2-hunter2-hunter2-hunter2",
    "STORAGE_URL": "file:///var/lib/audio",
}
MODAL = {
    **QWEN,
    "TTS_PROVIDER_MODE": "modal",
    "DASHSCOPE_API_KEY": "",
    "MODAL_JOB_SUBMIT": "https://speech--submit.modal.run",
    "MODAL_JOB_STATUS": "https://speech--status.modal.run",
    "MODAL_JOB_RESULT": "https://speech--result.modal.run",
    "MODAL_ENDPOINT_VOICE_DESIGN": "https://speech--design.modal.run",
}


class Recorded(Mapping[str, str]):
    """An environment that remembers whose values were asked for; the names alone are nobody's secret."""

    def __init__(self, values: dict[str, str]) -> None:
        self.values_by_name, self.asked = values, set[str]()

    def __getitem__(self, name: str) -> str:
        self.asked.add(name)
        return self.values_by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_by_name)

    def __len__(self) -> int:
        return len(self.values_by_name)


IN_CN = {"DASHSCOPE_REGION": "cn", "DASHSCOPE_BASE_URL": "https://dashscope.aliyuncs.com"}


def problems(**changes: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        Settings.from_environ({**QWEN, **changes})
    return caught.value.problems


def test_the_smallest_environment_gets_every_documented_default() -> None:
    settings = Settings.from_environ(QWEN)
    assert settings.dashscope_ws_url == "wss://dashscope-intl.aliyuncs.com/api-ws/v1/realtime"
    assert settings.storage == StorageSettings(kind="disk", root="/var/lib/audio")
    given = {"database_url", "dashscope_api_key", "auth_jwt_secret", "storage", *LIMITS}
    for field in fields(Settings):
        if field.name not in given:
            assert getattr(settings, field.name) == field.default, field.name


def test_an_empty_environment_is_refused_with_every_missing_variable_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_environ({})
    named = {problem.split(" ")[0] for problem in caught.value.problems}
    assert named == {"DATABASE_URL", "DASHSCOPE_API_KEY", "AUTH_JWT_SECRET", "STORAGE_URL"}


def test_wrong_and_missing_variables_are_named_together_one_sentence_each() -> None:
    found = problems(PORT="eighty", QUEUE_LIMIT="-1", STORAGE_URL="", SERVE_PAGE="perhaps", LOG_FORMAT="xml")
    assert sorted(problem.split(" ")[0] for problem in found) == [
        "LOG_FORMAT",
        "PORT",
        "QUEUE_LIMIT",
        "SERVE_PAGE",
        "STORAGE_URL",
    ]
    assert all(problem.endswith(".") and "\n" not in problem for problem in found)


def test_blank_means_unset() -> None:
    blank = {variable.name: "  " for variable in VARIABLES}
    assert Settings.from_environ({**blank, **QWEN}) == Settings.from_environ(QWEN)


def test_neither_problems_nor_repr_repeat_a_secret() -> None:
    secret = "hunter2"
    assert secret not in repr(Settings.from_environ({**QWEN, "METRICS_TOKEN": secret, "STREAM_TICKET_SECRET": secret}))
    wrong = problems(
        DATABASE_URL=f"mysql://app:{secret}@db/app",
        DASHSCOPE_API_KEY=f"{secret} {secret}",
        DASHSCOPE_BASE_URL=f"https://user:{secret}@dashscope-intl.aliyuncs.com",
        AUTH_JWKS_URL=f"ftp://user:{secret}@keys.example.com",
        STORAGE_URL=f"s3://key:{secret}@bucket",
        CORS_ALLOW_ORIGINS=f"https://user:{secret}@app.example.com",
    )
    assert len(wrong) == 6
    assert secret not in "".join(wrong)


def test_modal_mode_needs_its_endpoints_and_no_dashscope_key() -> None:
    assert Settings.from_environ(MODAL).modal_job_cancel is None
    without = {name: value for name, value in MODAL.items() if not name.startswith("MODAL_")}
    with pytest.raises(SettingsError) as caught:
        Settings.from_environ(without)
    assert {problem.split(" ")[0] for problem in caught.value.problems} == {
        name for name in MODAL if name.startswith("MODAL_")
    }


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("https://w1.ap-southeast-1.maas.aliyuncs.com/", "wss://w1.ap-southeast-1.maas.aliyuncs.com"),
        ("https://dashscope-intl.aliyuncs.com/api/v1", "wss://dashscope-intl.aliyuncs.com"),
        ("http://127.0.0.1:4010", "ws://127.0.0.1:4010"),
        ("http://proxy.internal/qwen", "ws://proxy.internal/qwen"),
    ],
)
def test_the_realtime_address_follows_the_base(base: str, expected: str) -> None:
    assert (
        Settings.from_environ({**QWEN, "DASHSCOPE_BASE_URL": base}).dashscope_ws_url == expected + "/api-ws/v1/realtime"
    )


@pytest.mark.parametrize("name", ["DASHSCOPE_BASE_URL", "DASHSCOPE_WS_URL", "DASHSCOPE_INFERENCE_WS_URL"])
@pytest.mark.parametrize(
    ("host", "region"),
    [
        ("dashscope-intl.aliyuncs.com", "cn"),
        ("w1.ap-southeast-1.maas.aliyuncs.com", "cn"),
        ("dashscope.aliyuncs.com", "intl"),
        ("w1.cn-beijing.maas.aliyuncs.com", "intl"),
    ],
)
def test_an_address_of_the_other_region_is_refused(name: str, host: str, region: str) -> None:
    own = {"intl": "https://dashscope-intl.aliyuncs.com", "cn": "https://dashscope.aliyuncs.com"}[region]
    scheme = "https" if name == "DASHSCOPE_BASE_URL" else "wss"
    environ = {"DASHSCOPE_REGION": region, "DASHSCOPE_BASE_URL": own, name: f"{scheme}://{host}"}
    assert any(problem.startswith(name) and "region" in problem for problem in problems(**environ))


@pytest.mark.parametrize("region", ["intl", "cn"])
def test_a_loopback_address_agrees_with_both_regions(region: str) -> None:
    environ = {**QWEN, "DASHSCOPE_REGION": region, "DASHSCOPE_BASE_URL": "http://localhost:4010"}
    assert Settings.from_environ(environ).dashscope_region == region


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("QWEN_VC_TARGET_MODELS", "QWEN_VC_TARGET_MODEL"),
        ("CORS_ALLOWED_ORIGINS", "CORS_ALLOW_ORIGINS"),
        ("synthesis_concurrency", "SYNTHESIS_CONCURRENCY"),
        ("SYNTHESIS_CONCURENCY", "SYNTHESIS_CONCURRENCY"),
        ("UTTER_PORT", "PORT"),
        ("UTTER_PUBLIC_BASE_URL", "PUBLIC_BASE_URL"),
        ("AUTH_JWT_SECRET_PREV", "AUTH_JWT_SECRET_PREVIOUS"),
    ],
)
def test_a_name_that_looks_like_one_of_ours_is_pointed_out(name: str, meant: str) -> None:
    said = Settings.from_environ({**QWEN, name: "1"}).weaknesses
    assert said == [f"{name} is set, and nothing here reads it: is {meant} meant?"]


def test_what_is_somebody_else_s_or_set_under_its_right_name_is_let_alone() -> None:
    others = {"HOSTNAME": "web.1", "AWS_REGION": "x", "DATABASE_URI": "x", "PORTS": "1", "DASHSCOPE_API_KEYS": "x"}
    assert Settings.from_environ({**QWEN, **others}).weaknesses == []


def test_a_missing_variable_s_misspelling_is_named_with_what_is_missing() -> None:
    with pytest.raises(SettingsError) as refused:
        Settings.from_environ({**QWEN, "DATABASE_URL": "", "DATABASE_URI": "postgresql://x"})
    assert refused.value.problems == [
        "DATABASE_URL is missing: it names the PostgreSQL that this server works on.",
        "DATABASE_URI is set, and nothing here reads it: is DATABASE_URL meant?",
    ]


def test_the_compatible_mode_base_is_refused() -> None:
    found = problems(DASHSCOPE_BASE_URL="https://dashscope-intl.aliyuncs.com/compatible-mode/v1")
    assert len(found) == 1
    assert "/compatible-mode" in found[0]


def test_a_key_never_travels_to_the_provider_in_the_open() -> None:
    assert "https://" in problems(DASHSCOPE_BASE_URL="http://dashscope-intl.aliyuncs.com")[0]


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("QWEN_VC_TARGET_MODEL", "qwen3-tts-vd-realtime-2026-01-15"),
        ("QWEN_VD_TARGET_MODEL", "qwen3-tts-vc-2026-01-22"),
        ("QWEN_VC_TARGET_MODEL", "qwen3-tts-flash-realtime"),
    ],
)
def test_a_target_model_of_another_family_is_refused(name: str, model: str) -> None:
    assert [problem.split(" ")[0] for problem in problems(**{name: model})] == [name]


@pytest.mark.parametrize("model", ["qwen-audio-3.0-tts-flash", "qwen-audio-3.1-tts-flash", "cosyvoice-v3-plus"])
def test_the_family_that_speaks_in_tasks_takes_cloned_voices_everywhere(model: str) -> None:
    for region in ({}, IN_CN):
        settings = Settings.from_environ({**QWEN, **region, "QWEN_VC_TARGET_MODEL": model})
        assert settings.qwen_vc_target_model == model


def test_what_a_region_does_not_offer_is_said_at_the_start() -> None:
    for name in ("QWEN_VC_TARGET_MODEL", "QWEN_VD_TARGET_MODEL"):
        [problem] = problems(**{name: "cosyvoice-v3.5-flash"})
        assert problem.startswith(f"{name} names cosyvoice-v3.5-flash")
        assert "DASHSCOPE_REGION=cn" in problem
        assert Settings.from_environ({**QWEN, **IN_CN, name: "cosyvoice-v3.5-flash"})


def test_designs_of_that_family_need_a_region_that_makes_them_or_the_other_provider() -> None:
    model = {"QWEN_VD_TARGET_MODEL": "qwen-audio-3.0-tts-flash"}
    [problem] = problems(**model)
    assert "MODAL_ENDPOINT_VOICE_DESIGN" in problem
    assert Settings.from_environ({**QWEN, **model, "MODAL_ENDPOINT_VOICE_DESIGN": "https://modal.example/design"})
    assert Settings.from_environ({**QWEN, **IN_CN, **model})


def test_a_models_family_is_read_off_its_name() -> None:
    assert model_family("qwen3-tts-vc-2026-01-22") == "vc"
    assert model_family("qwen3-tts-vd-realtime-2026-01-15") == "vd"
    assert model_family("qwen3-tts-instruct-flash-realtime") is None


def test_the_configured_models_can_be_spoken_with() -> None:
    settings = Settings.from_environ({**QWEN, "QWEN_VC_TARGET_MODEL": "qwen3-tts-vc-realtime-2027-05-01"})
    assert settings.speakable_models == KNOWN_MODELS | {"qwen3-tts-vc-realtime-2027-05-01"}
    assert "qwen3-tts-vc-realtime-2027-05-01" in settings.speakable_models


def test_a_server_that_knows_only_a_key_set_needs_a_ticket_secret_of_its_own() -> None:
    environ = {**QWEN, "AUTH_JWT_SECRET": "", "AUTH_JWKS_URL": "https://auth.example.com/keys"}
    with pytest.raises(SettingsError) as caught:
        Settings.from_environ(environ)
    assert [problem.split(" ")[0] for problem in caught.value.problems] == ["STREAM_TICKET_SECRET"]
    settings = Settings.from_environ({**environ, "STREAM_TICKET_SECRET": "x" * 40})
    assert settings.auth_jwt_secret is None


def test_a_short_secret_is_accepted_and_pointed_out() -> None:
    settings = Settings.from_environ({**QWEN, "AUTH_JWT_SECRET": "short"})
    assert settings.auth_jwt_secret == "short"
    assert [weakness.split(" ")[0] for weakness in settings.weaknesses] == ["AUTH_JWT_SECRET"]
    assert Settings.from_environ(QWEN).weaknesses == []


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://", StorageSettings(kind="s3")),
        (
            "s3://?endpoint=http://127.0.0.1:9000&region=eu-1",
            StorageSettings(kind="s3", endpoint="http://127.0.0.1:9000", region="eu-1"),
        ),
        (
            "s3://?endpoint=https%3A%2F%2Fobjects.example.com%2Fs3%2F&region=auto",
            StorageSettings(kind="s3", endpoint="https://objects.example.com/s3", region="auto"),
        ),
        ("file:///srv/a%20b", StorageSettings(kind="disk", root="/srv/a b")),
    ],
)
def test_storage_urls_are_taken_apart(url: str, expected: StorageSettings) -> None:
    assert Settings.from_environ({**QWEN, "STORAGE_URL": url}).storage == expected


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket",
        "s3://key:secret@?region=a",
        "s3://?endpoint=objects.example.com",
        "s3://?endpoint=https://key:secret@objects.example.com",
        "s3://?access_key=a",
        "file://relative/path",
        "file:relative",
        "/srv/audio",
        "https://objects.example.com",
        "s3://[",
    ],
)
def test_other_storage_urls_are_refused(url: str) -> None:
    assert all("STORAGE_URL" in problem for problem in problems(STORAGE_URL=url))


def test_buckets_have_variables_of_their_own() -> None:
    changes = {"STORAGE_BUCKET_REFERENCES": "refs", "STORAGE_BUCKET_GENERATIONS": "spoken"}
    storage = Settings.from_environ({**QWEN, **changes}).storage
    assert (storage.bucket_references, storage.bucket_generations) == ("refs", "spoken")
    assert "STORAGE_BUCKET_REFERENCES" in problems(STORAGE_BUCKET_REFERENCES="../elsewhere")[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "65536"),
        ("PORT", "1_000"),
        ("PORT", "٣"),
        ("QWEN_MAX_TEXT_CHARS", "0"),
        ("QWEN_STARTS_PER_MINUTE", "1.5"),
        ("SYNTHESIS_CONCURRENCY", "0"),
        ("SHUTDOWN_GRACE_SECONDS", "-1"),
        ("SHUTDOWN_GRACE_SECONDS", "nan"),
        ("DATABASE_POOL_SIZE", "3"),
        ("LOG_LEVEL", "loud"),
        ("QWEN_DEFAULT_RESPONSE_FORMAT", "opus"),
        ("TTS_PROVIDER_MODE", "azure"),
        ("DASHSCOPE_WORKSPACE", "a\r\nX-Other: b"),
        ("PROVIDER_DOWNLOAD_HOSTS", "https://media.example.com"),
        ("PROVIDER_DOWNLOAD_HOSTS", "*"),
        ("CORS_ALLOW_ORIGINS", "https://app.example.com/page"),
        ("CORS_ALLOW_ORIGINS", "app.example.com"),
        ("FORWARDED_ALLOW_IPS", "proxy.internal"),
        ("PUBLIC_BASE_URL", "speech.example.com"),
        ("PUBLIC_BASE_URL", "https://speech.example.com/?a=b"),
        ("DATABASE_URL", "postgresql://db:port/app"),
        ("MODAL_JOB_CANCEL", "modal.run"),
    ],
)
def test_values_out_of_bounds_are_refused(name: str, value: str) -> None:
    assert [problem.split(" ")[0] for problem in problems(**{name: value})] == [name]


def test_lists_flags_and_numbers_are_read() -> None:
    settings = Settings.from_environ(
        {
            **QWEN,
            "CORS_ALLOW_ORIGINS": "https://App.example.com:443/, http://localhost:5173,",
            "PROVIDER_DOWNLOAD_HOSTS": "*.aliyuncs.com, 127.0.0.1, [::1]",
            "FORWARDED_ALLOW_IPS": "10.0.0.0/8, ::1",
            "PUBLIC_BASE_URL": "https://speech.example.com/",
            "SERVE_PAGE": "TRUE",
            "ALLOW_GENERATE_MODE_TOGGLE": "1",
            "SHUTDOWN_GRACE_SECONDS": "2.5",
            "LOG_LEVEL": "WARNING",
            "PORT": "0",
        }
    )
    assert settings.cors_allow_origins == ("https://app.example.com", "http://localhost:5173")
    assert settings.provider_download_hosts == ("*.aliyuncs.com", "127.0.0.1", "::1")
    assert settings.forwarded_allow_ips == "10.0.0.0/8,::1"
    assert settings.public_base_url == "https://speech.example.com"
    assert settings.serve_page
    assert settings.allow_generate_mode_toggle
    assert settings.shutdown_grace_seconds == 2.5
    assert settings.log_level == "warning"
    assert settings.port == 0


def test_the_documented_variables_are_exactly_those_that_are_read() -> None:
    environ = Recorded({**QWEN, "SOMEBODY_ELSES_SECRET": "hunter2"})
    Settings.from_environ(environ)
    assert environ.asked == {variable.name for variable in VARIABLES}


def test_every_variable_has_a_field_and_every_field_a_variable() -> None:
    settings = Settings.from_environ(QWEN)
    for variable in VARIABLES:
        reduce(getattr, variable.field.split("."), settings)
    own = {variable.field.split(".")[0] for variable in VARIABLES}
    assert own == {field.name for field in fields(Settings)} - set(LIMITS) - {"misspelt"}


def test_documented_defaults_are_the_real_ones() -> None:
    """Where the table shows a value it is the field's default; where it shows words, the field has none of its own."""
    defaults = {
        **{field.name: field.default for field in fields(Settings)},
        **{f"storage.{field.name}": field.default for field in fields(StorageSettings)},
    }
    for variable in VARIABLES:
        default = defaults[variable.field]
        if variable.name in ("MEMORY_FOR_AUDIO", "UNSTORED_LIMIT"):
            environ = {**QWEN, variable.name: variable.default.strip("`")}
            assert getattr(Settings.from_environ(environ), variable.field) == default, variable.name
        elif variable.default.startswith("`"):
            shown = (
                ",".join(default)
                if isinstance(default, tuple)
                else f"{default:g}"
                if isinstance(default, float)
                else str(default)
            )
            assert variable.default.strip("`") == (shown.lower() if isinstance(default, bool) else shown), variable.name
        elif variable.name not in ("DASHSCOPE_WS_URL", "DASHSCOPE_INFERENCE_WS_URL"):
            assert default in (MISSING, None, "", ()), variable.name


@pytest.mark.parametrize(
    "query",
    [
        "channel_binding=require",
        "pgbouncer=true",
        "connect_timeout=10",
        "keepalives=1",
        "gssencmode=disable",
        "pool_timeout=10",
        "sslmode=prefer&application_name=utter&connection_limit=1",
    ],
)
def test_a_database_url_that_is_right_for_libpq_is_right_here(query: str) -> None:
    address, problems = read_database_address(f"postgresql://u:p@h:5432/d?{query}")
    assert problems == []
    assert address in (
        "postgresql://u:p@h:5432/d",
        "postgresql://u:p@h:5432/d?sslmode=prefer&application_name=utter",
    )


def test_what_nobody_knows_of_a_database_url_is_named() -> None:
    address, problems = read_database_address("postgresql://u:p@h/d?chanel_binding=require&a=b&sslmode=disable")
    assert address == "postgresql://u:p@h/d?sslmode=disable"
    assert problems == ["has parameters that nobody knows: a, chanel_binding"]


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        (
            "sslmode=no-verify",
            "must have disable, allow, prefer, require, verify-ca or verify-full as its sslmode",
        ),
        (
            "target_session_attrs=master",
            "must have any, read-write, read-only, primary, standby or prefer-standby as its target_session_attrs",
        ),
        ("sslmode=verify-full&sslrootcert=system", "names a file as its sslrootcert that is not there"),
        ("sslcert=/nowhere/client.pem", "names a file as its sslcert that is not there"),
    ],
)
def test_what_the_driver_would_stumble_over_is_no_database_that_is_away(query: str, problem: str) -> None:
    with pytest.raises(SettingsError) as refused:
        Settings.from_environ({**QWEN, "DATABASE_URL": f"postgresql://u:p@h/d?{query}"})
    assert refused.value.problems == [f"DATABASE_URL {problem}."]
