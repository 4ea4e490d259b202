//! The real binary as a server of one test: its own port, its own data directory, killed when the test ends.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Longest that anything here waits; only a hang takes so long.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) struct Server {
    child: Child,
    pub(crate) url: String,
}

impl Server {
    /// Starts the server on `data` and returns once it says that it listens, which it says once it is ready.
    pub(crate) fn start(data: &Path, flags: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna"));
        command.arg("serve").args(flags).env("LACUNA_PORT", "0").env("LACUNA_DATA_DIR", data);
        Self::from(command)
    }

    /// As `start`, of a command that runs the server.
    pub(crate) fn from(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = lines.by_ref().map(Result::unwrap).find(|line| line.contains("listening on "));
        let Some(line) = line else { panic!("the server ended without listening: {:?}", child.wait()) };
        let url = line.split("listening on ").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
        // What it still prints is read, so that it never blocks on a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, url }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL: no handler runs, nothing is flushed.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// How it ended, once it has.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "the server does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// POSTs JSON; status and body of the answer, or the transport's error.
pub(crate) async fn post(http: &reqwest::Client, url: &str, body: &Value) -> reqwest::Result<(u16, Value)> {
    let answer = http.post(url).json(body).timeout(PATIENCE).send().await?;
    let status = answer.status().as_u16();
    Ok((status, answer.json().await.unwrap_or(Value::Null)))
}

pub(crate) async fn get(http: &reqwest::Client, url: &str) -> reqwest::Result<(u16, Value)> {
    let answer = http.get(url).timeout(PATIENCE).send().await?;
    let status = answer.status().as_u16();
    Ok((status, answer.json().await.unwrap_or(Value::Null)))
}
