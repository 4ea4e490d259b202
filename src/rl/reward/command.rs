//! A child process as a hook: one line of JSON in (protocol v1), one line out. No shell; no variables of ours but
//! `PATH` and those that the configuration passes on; killed when it is late, out of step, or no longer needed.

use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::sync::Mutex;
use uuid::Uuid;

use super::http::batches;
use super::wire::{self, MAX_ANSWER};
use super::{GroupInput, HookError, RewardHook, Score, all};

/// What a command hook is made of.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name in the configuration.
    pub name: String,
    /// The program, found by `PATH` or by its path, and its arguments.
    pub command: Vec<String>,
    /// Variables that it gets besides `PATH`.
    pub env: Vec<(String, String)>,
    /// Rewards that are believed.
    pub range: wire::Range,
    /// Longest that one batch takes.
    pub timeout: Duration,
    /// How often it may be started again within one call of `score`.
    pub restarts: u32,
    /// Samples of one batch; a larger group travels alone and whole.
    pub max_batch: usize,
}

/// The hook. The process is started by the first call and kept; calls take turns.
pub struct Command {
    settings: Settings,
    process: Mutex<Option<Process>>,
}

struct Process {
    /// Killed on drop.
    _child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Command {
    /// The hook of `settings`.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings, process: Mutex::new(None) }
    }

    fn start(&self) -> Result<Process, HookError> {
        let died = |what: &str| HookError::Died(format!("{what}; see the hook's command"));
        let [program, arguments @ ..] = self.settings.command.as_slice() else { return Err(died("no program")) };
        let mut command = tokio::process::Command::new(program);
        command.args(arguments).env_clear().envs(self.settings.env.iter().cloned());
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        // Nobody reads what it complains of, and that may quote prompts.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut child =
            command.spawn().map_err(|error| died(&format!("{program} does not start: {}", error.kind())))?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(stdin), Some(stdout)) => Ok(Process { _child: child, stdin, stdout: BufReader::new(stdout) }),
            _ => Err(died("no pipes")),
        }
    }

    /// Scores one batch with the process in `kept`, or a new one. It is put back only when it is in step, so that an
    /// answer that comes late is never taken for the next one.
    async fn batch(
        &self,
        kept: &mut Option<Process>,
        run: Uuid,
        groups: &[GroupInput],
    ) -> Result<Vec<Vec<Score>>, HookError> {
        let mut process = match kept.take() {
            Some(process) => process,
            None => self.start()?,
        };
        let mut line = wire::request_v1(run, &self.settings.name, groups).to_string();
        line.push('\n');
        let timeout = self.settings.timeout;
        let answer = tokio::time::timeout(timeout, process.ask(line.as_bytes()))
            .await
            .map_err(|_| HookError::Timeout(timeout))??;
        if process.stdout.buffer().is_empty() {
            *kept = Some(process);
        }
        wire::answer_v1(&answer, groups, self.settings.range)
    }
}

impl Process {
    /// Writes and reads at the same time: a process that answers before it has read everything blocks neither.
    async fn ask(&mut self, line: &[u8]) -> Result<Vec<u8>, HookError> {
        let Self { stdin, stdout, .. } = self;
        let write = async {
            stdin.write_all(line).await?;
            stdin.flush().await
        };
        let mut answer = Vec::new();
        let mut bounded = stdout.take(MAX_ANSWER as u64 + 1);
        let read = bounded.read_until(b'\n', &mut answer);
        tokio::try_join!(write, read).map_err(|error| HookError::Died(error.kind().to_string()))?;
        if answer.len() > MAX_ANSWER {
            return Err(HookError::TooLarge { limit: MAX_ANSWER });
        }
        if !answer.ends_with(b"\n") {
            return Err(HookError::Died("it ended".to_owned()));
        }
        Ok(answer)
    }
}

#[async_trait]
impl RewardHook for Command {
    fn name(&self) -> &str {
        &self.settings.name
    }

    async fn score(&self, groups: &[GroupInput]) -> Vec<Vec<Score>> {
        let mut kept = self.process.lock().await;
        let run = Uuid::now_v7();
        let mut starts = self.settings.restarts + u32::from(kept.is_none());
        let mut scores = Vec::with_capacity(groups.len());
        for range in batches(groups, self.settings.max_batch) {
            let batch = &groups[range];
            let mut again = true;
            let of_batch = loop {
                if kept.is_none() {
                    if starts == 0 {
                        break Err(HookError::Died("it died too often".to_owned()));
                    }
                    starts -= 1;
                }
                match self.batch(&mut kept, run, batch).await {
                    // A process that died before this batch came is not this batch's fault: one more try.
                    Err(HookError::Died(_)) if again && starts > 0 => again = false,
                    done => break done,
                }
            };
            if let Err(error) = &of_batch {
                tracing::warn!(hook = self.settings.name, reason = error.reason(), "a reward hook failed");
            }
            scores.extend(of_batch.unwrap_or_else(|error| all(batch, &Err(error))));
        }
        scores
    }
}

#[cfg(test)]
#[path = "command_tests.rs"]
mod tests;
