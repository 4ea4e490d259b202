//! Every command of README.md that is of `cargo`, `curl` or `lacuna` is run as it is printed.
//!
//! The commands are in fenced ```sh blocks. A block that starts the server is the server of the blocks that follow it;
//! the others run under `bash -euo pipefail` in one folder. The only changes: the server takes a free port, and its
//! address replaces the printed one; `cargo run --release` runs the binary under test.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::server::Server;

/// The address that the README prints.
const PRINTED: &str = "http://127.0.0.1:8080";

/// Commands that a test of the README must not run: they build or test this very tree, or take hours.
const NOT_HERE: &[&str] = &[
    "cargo build",
    "cargo install",
    "cargo test",
    "tests/run",
    "lacuna pretrain",
    "docker ",
    "git clone",
    "apt-get",
    "sudo ",
];

#[test]
fn every_command_of_the_readme_works() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let Ok(readme) = fs::read_to_string(root.join("README.md")) else { return };
    let folder = TempDir::new().unwrap();
    let bin = tools(folder.path());
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let data = folder.path().join("data");
    let mut server: Option<Server> = None;
    let mut ran = 0;
    for block in blocks(&readme) {
        let commands = runnable(&block);
        if commands.is_empty() {
            continue;
        }
        ran += commands.len();
        if let Some(start) = commands.iter().find(|command| starts_server(command)) {
            assert_eq!(commands.len(), 1, "a block that starts the server holds nothing else: {block}");
            drop(server.take()); // its data directory is wanted
            let mut command = bash(&format!("exec {start}"), folder.path(), &path);
            command.env("LACUNA_PORT", "0").env("LACUNA_DATA_DIR", &data);
            server = Some(Server::from(command));
            continue;
        }
        let mut script = commands.join("\n");
        if script.contains(PRINTED) {
            let server = server.get_or_insert_with(|| Server::start(&data, &[]));
            script = script.replace(PRINTED, &server.url);
        }
        let output = bash(&script, folder.path(), &path).output().unwrap();
        assert!(
            output.status.success(),
            "this block of README.md fails:\n{script}\n{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    assert!(ran > 0, "README.md shows no commands");
}

fn bash(script: &str, folder: &Path, path: &str) -> Command {
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", script]).current_dir(folder).env("PATH", path);
    command
}

/// A folder with `lacuna`, and a `cargo` whose `run` is the binary under test.
fn tools(folder: &Path) -> PathBuf {
    let bin = folder.join("bin");
    fs::create_dir(&bin).unwrap();
    let lacuna = env!("CARGO_BIN_EXE_lacuna");
    std::os::unix::fs::symlink(lacuna, bin.join("lacuna")).unwrap();
    let shim = format!(
        "#!/usr/bin/env bash\n[ \"$1\" = run ] || {{ echo \"cargo $* is not run by this test\" >&2; exit 1; }}\n\
         while [ $# -gt 0 ]; do case $1 in --) shift; break;; *) shift;; esac; done\nexec {lacuna} \"$@\"\n"
    );
    fs::write(bin.join("cargo"), shim).unwrap();
    fs::set_permissions(bin.join("cargo"), fs::Permissions::from_mode(0o755)).unwrap();
    bin
}

/// The contents of the ```sh blocks.
fn blocks(readme: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut open: Option<String> = None;
    for line in readme.lines() {
        match &mut open {
            None if line.trim() == "```sh" => open = Some(String::new()),
            None => {}
            Some(_) if line.trim() == "```" => blocks.extend(open.take()),
            Some(block) => {
                block.push_str(line);
                block.push('\n');
            }
        }
    }
    blocks
}

/// The commands of a block, continuation lines joined, without comments and those that are not for a test. A block with
/// a command that is not ours to run is run without it.
fn runnable(block: &str) -> Vec<String> {
    let mut commands: Vec<String> = Vec::new();
    let mut joined = String::new();
    for line in block.lines() {
        if joined.is_empty() && line.trim_start().starts_with('#') {
            continue; // a comment may hold any quotes
        }
        joined.push_str(line);
        // A quoted argument may span lines: the command ends when its quotes do.
        if line.ends_with('\\') || joined.matches('\'').count() % 2 == 1 {
            joined.push('\n');
            continue;
        }
        commands.push(std::mem::take(&mut joined));
    }
    commands.retain(|command| {
        let command = command.trim();
        !command.is_empty() && !NOT_HERE.iter().any(|other| command.contains(other))
    });
    commands
}

fn starts_server(command: &str) -> bool {
    let words: Vec<&str> = command.split_whitespace().take_while(|word| !word.starts_with('#')).collect();
    let own = match words.as_slice() {
        ["cargo", "run", rest @ ..] => match rest.iter().position(|&word| word == "--") {
            Some(at) => &rest[at + 1..],
            None => &[],
        },
        ["lacuna", rest @ ..] => rest,
        _ => return false,
    };
    match own {
        [] | ["serve", ..] => !own.contains(&"--print-config") && !own.contains(&"--help"),
        [first, ..] => first.starts_with("--") && !["--help", "--version"].contains(first),
    }
}

#[test]
fn blocks_and_commands_are_read_as_people_read_them() {
    let readme = "text\n```sh\n# start\ncargo run --release\n```\n```json\n{}\n```\n```sh\ncurl x \\\n  -d '{\n}' | jq .\nlacuna doctor\ncargo test\n```\n";
    let blocks = blocks(readme);
    assert_eq!(blocks.len(), 2);
    assert_eq!(runnable(&blocks[0]), ["cargo run --release"]);
    assert_eq!(runnable(&blocks[1]), ["curl x \\\n  -d '{\n}' | jq .", "lacuna doctor"]);
    for server in ["cargo run --release", "lacuna", "lacuna serve --port 9000", "cargo run --release -- --port 1"] {
        assert!(starts_server(server), "{server}");
    }
    for other in
        ["lacuna doctor", "curl x", "cargo run --release -- bench", "lacuna --help", "lacuna serve --print-config"]
    {
        assert!(!starts_server(other), "{other}");
    }
}
