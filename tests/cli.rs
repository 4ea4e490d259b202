//! The command line as its users meet it: help, layers of configuration, messages.

use std::process::{Command, Output};

use tempfile::TempDir;

/// The binary with an empty environment: a developer's own `LACUNA_*` must not change what a test sees.
fn lacuna(args: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna"));
    command.args(args).env_clear().envs(env.iter().copied()).output().unwrap()
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

fn stdout(args: &[&str], env: &[(&str, &str)]) -> String {
    let output = lacuna(args, env);
    assert!(output.status.success(), "{args:?}: {}", text(output.stderr));
    text(output.stdout)
}

/// What a failing command says.
fn complaint(args: &[&str], env: &[(&str, &str)]) -> String {
    let output = lacuna(args, env);
    assert!(!output.status.success(), "{args:?} should fail");
    text(output.stderr)
}

#[test]
fn help_of_every_command() {
    insta::assert_snapshot!("help", stdout(&["--help"], &[]));
    let commands = [
        "serve",
        "generate text",
        "generate image",
        "bench",
        "demo",
        "eval",
        "train",
        "adapters",
        "adapters promote",
        "pretrain",
        "openapi",
        "doctor",
        "health",
    ];
    for command in commands {
        let args: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        insta::assert_snapshot!(format!("help {command}").replace(' ', "_"), stdout(&args, &[]));
    }
}

#[test]
fn the_effective_configuration_is_printed_with_its_origins() {
    insta::assert_snapshot!(
        "print_config",
        stdout(&["serve", "--print-config", "--port", "0"], &[("LACUNA_HOST", "::1")])
    );
}

#[test]
fn flags_win_over_variables_over_the_file_over_the_defaults() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("lacuna.toml");
    std::fs::write(&file, "[engine]\nmax_queue = 11\nmax_rows = 1111\nmax_running = 1\n").unwrap();
    let file = file.to_str().unwrap();
    let env = [("LACUNA_CONFIG", file), ("LACUNA_MAX_QUEUE", "22"), ("LACUNA_MAX_ROWS", "2222")];
    let printed = stdout(&["--print-config", "--max-queue", "33", "--max-n", "3"], &env);
    for line in [
        "max_queue = 33  # set by flag",
        "max_rows = 2222  # set by variable",
        "max_running = 1  # set in the file",
        "max_steps = 1024\n",
    ] {
        assert!(printed.contains(line), "{line} is not in\n{printed}");
    }
}

#[test]
fn every_key_of_the_file_can_be_set() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("lacuna.toml");
    std::fs::write(&file, "[training]\nlr = 1e-4\n").unwrap();
    let set = ["--set", "training.lr=5e-4", "--set", "training.adapter=night", "--set", "training.lora.rank=4"];
    let printed = stdout(&[&["--print-config", "--config", file.to_str().unwrap()][..], &set].concat(), &[]);
    for line in ["lr = 0.0005  # set by flag", "adapter = \"night\"  # set by flag", "rank = 4"] {
        assert!(printed.contains(line), "{line} is not in\n{printed}");
    }
    for (set, words) in [
        ("training.lr", ["--set", "section.key=value"]),
        ("lr=1", ["--set", "section.key=value"]),
        ("training.lrr=1", ["lrr", "unknown field"]),
        ("training.lr=7", ["training.lr", "7 is outside 0 to 1"]),
    ] {
        let message = complaint(&["--print-config", "--set", set], &[]);
        assert!(words.iter().all(|word| message.contains(word)), "{set}: {message}");
    }
}

#[test]
fn practice_reports_every_update_and_writes_an_adapter() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("adapter");
    let sampling = r#"{"sampler":{"kind":"emerge"},"steps":2,"guidance_scale":0,"temperature":1}"#;
    let run = || {
        json(&[
            "train",
            "--task",
            "taste",
            "--updates",
            "2",
            "--prompts",
            "2",
            "--completions",
            "4",
            "--eval-n",
            "4",
            "--sampling",
            sampling,
            "--judge-at",
            r#"{"steps":4}"#,
            "--reward",
            "1,1,0.5",
            "--set",
            "training.lora.rank=2",
            "--save",
            out.to_str().unwrap(),
            "--json",
            "--log",
            "warn",
        ])
    };
    let (report, again) = (run(), run());
    assert_eq!((&report["updates"], &report["judged"]), (&again["updates"], &again["judged"]), "one seed, one result");
    assert_eq!(report["updates"].as_array().unwrap().len(), 2);
    let steps = report["updates"].as_array().unwrap().iter().map(|u| u["report"]["steps"].as_u64().unwrap());
    assert!(steps.sum::<u64>() > 0, "{report}");
    let judged = report["judged"].as_array().unwrap();
    assert_eq!((judged.len(), &judged[1]["settings"]["steps"], &judged[1]["n"]), (2, &4.into(), &4.into()));
    assert_eq!(report["reward"], serde_json::json!([1.0, 1.0, 0.5]));
    assert!(out.join("adapter_model.safetensors").is_file() && out.join("adapter_config.json").is_file());
    let message = complaint(&["train", "--task", "taste", "--sampling", "[1]"], &[]);
    assert!(message.contains("a JSON object"), "{message}");
    for reward in ["1", "1,2", "1,2,x", "1,2,inf", "1,2,3,4"] {
        let message = complaint(&["train", "--task", "taste", "--reward", reward], &[]);
        assert!(message.contains("three numbers"), "{reward}: {message}");
    }
    assert!(complaint(&["train"], &[]).contains("--from-log"));
}

#[test]
fn what_is_printed_is_a_configuration_file() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("lacuna.toml");
    let printed = stdout(&["--print-config", "--threads", "3", "--port", "0", "--log", "warn"], &[]);
    std::fs::write(&file, &printed).unwrap();
    let again = stdout(&["--print-config", "--config", file.to_str().unwrap()], &[]);
    let values = |text: &str| text.lines().map(|l| l.split("  #").next().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(values(&printed), values(&again));
}

#[test]
fn refusals_name_field_value_and_limit() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("lacuna.toml");
    let in_file = |content: &str| {
        std::fs::write(&file, content).unwrap();
        complaint(&["--config", file.to_str().unwrap()], &[])
    };
    let all = |message: &str, words: &[&str]| {
        for word in words {
            assert!(message.contains(word), "{word:?} is not in {message:?}");
        }
    };
    all(&complaint(&["--max-rows", "5"], &[]), &["engine.max_rows = 5", "from 64 to 1048576"]);
    all(&complaint(&["--max-n", "20", "--max-queue", "10"], &[]), &["limits.max_n = 20", "engine.max_queue = 10"]);
    all(&complaint(&["--model", ""], &[]), &["engine.model", "starter"]);
    all(&complaint(&["--log", "a=b=c"], &[]), &["telemetry.log", "a=b=c"]);
    all(&complaint(&["--config", "nowhere.toml"], &[]), &["nowhere.toml", "no such file"]);
    all(&in_file("[engine]\nmax_row = 5\n"), &["max_row", "unknown field", "max_rows"]);
    all(&in_file("[engine]\nmax_rows = \"many\"\n"), &["max_rows", "many"]);
    all(&in_file("[engines]\n"), &["engines", "unknown field"]);
    all(&in_file("[engine]\nmax_rows = 5\n"), &["engine.max_rows = 5", "from 64 to 1048576"]);
}

#[test]
fn a_kubernetes_service_link_is_explained() {
    let message = complaint(&["serve"], &[("LACUNA_PORT", "tcp://10.0.0.1:8080")]);
    assert!(message.contains("Kubernetes") && message.contains("enableServiceLinks"), "{message}");
    assert!(
        stdout(&["--print-config", "--port", "1"], &[("LACUNA_PORT", "tcp://10.0.0.1:8080")]).contains("port = 1 ")
    );
}

#[test]
fn a_probe_of_nothing_fails() {
    let message = complaint(&["health", "--url", "http://127.0.0.1:1"], &[]);
    assert!(message.contains("http://127.0.0.1:1/ready does not answer"), "{message}");
}

fn json(args: &[&str]) -> serde_json::Value {
    serde_json::from_str(&stdout(args, &[])).unwrap()
}

#[test]
fn bench_compares_with_itself_while_it_learns() {
    let args = ["bench", "--json", "--requests", "3", "--log", "warn", "--kind", "text", "--concurrency", "1"];
    let report = json(&[&args[..], &["--learning"]].concat());
    let beside = &report["runs"][0]["learning"];
    assert_eq!(beside["requests"], 3, "{report}");
    assert!(["p50", "p95", "throughput"].iter().all(|key| beside[key].as_f64().unwrap() > 0.0), "{report}");
    assert!(json(&args)["runs"][0].get("learning").is_none());
    let message = complaint(&["bench", "--url", "http://127.0.0.1:1", "--learning"], &[]);
    assert!(message.contains("--learning"), "{message}");
}

#[test]
fn bench_reports_every_number_of_a_run() {
    let common = ["bench", "--json", "--requests", "4", "--log", "warn"];
    let report = json(&[&common[..], &["--kind", "text,image", "--concurrency", "2"]].concat());
    let runs = report["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 2);
    for (run, kind) in runs.iter().zip(["text", "image"]) {
        assert_eq!(
            (&run["kind"], &run["concurrency"], &run["requests"]),
            (&kind.into(), &2.into(), &4.into()),
            "{run}"
        );
        for path in [
            "/positions_per_s",
            "/ppt",
            "/tpf",
            "/latency_ms/p50",
            "/latency_ms/p95",
            "/latency_ms/p99",
            "/tick/mean_ms",
            "/tick/matmul",
            "/tick/attention",
            "/tick/elementwise",
            "/tick/sampling",
            "/engine_efficiency",
        ] {
            assert!(run.pointer(path).and_then(serde_json::Value::as_f64).is_some_and(|v| v > 0.0), "{path}: {run}");
        }
        let made = if kind == "text" { "tokens_per_s" } else { "images_per_s" };
        assert!(run[made].as_f64().unwrap() > 0.0, "{run}");
    }
    let open = json(&[&common[..], &["--kind", "mixed", "--rate", "50"]].concat());
    assert_eq!(open["runs"][0]["rate"], 50.0);
    assert_eq!(open["runs"][0]["requests"], 4);
}

#[test]
fn eval_reports_every_kind() {
    let folder = TempDir::new().unwrap();
    let sheet = folder.path().join("sheet.png");
    let report = json(&["eval", "--json", "--n", "1", "--log", "warn", "--sheet", sheet.to_str().unwrap()]);
    assert!(report["scenes"]["kinds"].as_object().unwrap().len() >= 5, "{report}");
    assert!(report["words"]["accuracy"].is_number(), "{report}");
    assert!(image::open(&sheet).unwrap().width() >= 256);
}

#[test]
fn generate_writes_text_to_a_pipe_and_an_image_to_a_file() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("circle.png");
    let prompt = "what is 2 + 2 ?";
    let answer = stdout(&["generate", "text", prompt, "--max-tokens", "8", "--log", "warn"], &[]);
    assert!(!answer.contains('\x1b') && answer.ends_with('\n'), "{answer:?}");
    assert_eq!(
        answer,
        stdout(&["generate", "text", prompt, "--max-tokens", "8", "--log", "warn"], &[]),
        "not repeatable"
    );
    stdout(
        &["generate", "image", "a red circle", "--steps", "2", "--out", file.to_str().unwrap(), "--log", "warn"],
        &[],
    );
    assert!(image::open(&file).unwrap().width() >= 256);
    let refused = complaint(&["generate", "image", "a red circle", "--out", "circle.bmp"], &[]);
    assert!(refused.contains("circle.bmp") && refused.contains(".png"), "{refused}");
}

#[test]
fn doctor_passes_here_and_says_what_fails() {
    let folder = TempDir::new().unwrap();
    let data = folder.path().join("data");
    let report = stdout(&["doctor", "--data-dir", data.to_str().unwrap()], &[]);
    assert!(["cpu", "device", "model", "store"].iter().all(|what| report.contains(what)), "{report}");
    assert!(!data.exists(), "a check changes nothing");
    let output = lacuna(&["doctor", "--model", "nowhere"], &[]);
    assert!(!output.status.success());
    assert!(text(output.stdout).contains("FAIL  model"), "the failing line names the model");
    // A model in a folder is measured before it is loaded.
    let llada = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/llada");
    let report = text(lacuna(&["doctor", "--model", llada], &[]).stdout);
    assert!(report.contains("  memory   ") && report.contains("of weights"), "{report}");
}

#[test]
fn openapi_prints_the_committed_document() {
    let committed = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/openapi/openapi.json")).unwrap();
    assert_eq!(stdout(&["openapi"], &[]), committed);
}

/// What is shipped (the profile `dist`, 36.5 MB) is this without symbols, and smaller still: the model is in it.
#[test]
fn the_program_is_small() {
    if cfg!(debug_assertions) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let stripped = folder.path().join("lacuna");
    let output = Command::new("strip").arg("-o").arg(&stripped).arg(env!("CARGO_BIN_EXE_lacuna")).output();
    if !output.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: no strip; install binutils");
        return;
    }
    let megabytes = std::fs::metadata(&stripped).unwrap().len() as f64 / 1e6;
    assert!(megabytes < 42.0, "{megabytes:.1} MB without symbols");
}
