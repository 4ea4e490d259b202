//! The device thread: it owns every canvas and runs the ticks. Policy is in `scheduler`, mathematics in `diffusion`.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::job::{Event, FinishReason, Priority};
use super::pace::{Pace, Rate};
use super::running::{Job, Running};
use super::scheduler::{Candidate, Scheduler, longest_ticks};
use super::shared::Shared;
use super::stats::TickStats;
use super::{EngineError, Limits};
use crate::diffusion::cache::Caches;
use crate::diffusion::canvas::StepOutcome;
use crate::diffusion::{Canvas, Denoiser, Tick};
use crate::models::Model;

/// A canvas that has waited this long goes first whatever its class.
const AGING: Duration = Duration::from_secs(2);

/// What the handle asks of the thread.
pub(super) enum Command {
    /// Run these canvases.
    Submit(Box<Job>, Vec<Running>),
}

/// State of the device thread.
pub(super) struct Runner {
    model: Model,
    max_rows: usize,
    commands: mpsc::Receiver<Command>,
    shared: Arc<Shared>,
    denoiser: Denoiser,
    scheduler: Scheduler,
    jobs: HashMap<u64, Job>,
    /// In order of arrival.
    canvases: Vec<Running>,
    started: Instant,
    /// How long ticks take.
    pace: Pace,
    /// How often canvases end.
    rate: Rate,
}

impl Runner {
    pub(super) fn new(model: Model, limits: &Limits, commands: mpsc::Receiver<Command>, shared: Arc<Shared>) -> Self {
        Self {
            model,
            max_rows: limits.max_rows,
            commands,
            shared,
            denoiser: Denoiser::new(Caches::new(limits.max_cache_bytes)),
            scheduler: Scheduler::new(limits.max_running, AGING),
            jobs: HashMap::new(),
            canvases: Vec::new(),
            started: Instant::now(),
            pace: Pace::default(),
            rate: Rate::default(),
        }
    }

    /// Until every handle is gone and everything is done.
    pub(super) fn run(mut self) {
        while self.take_commands() {
            self.drop_cancelled();
            self.tick();
        }
    }

    /// Takes what is waiting; waits when there is nothing else to do. False when nothing can come any more.
    fn take_commands(&mut self) -> bool {
        if self.canvases.is_empty() {
            match self.commands.blocking_recv() {
                Some(command) => self.obey(command),
                None => return false,
            }
        }
        // A closed channel is no reason to stop: what is running is finished first.
        while let Ok(command) = self.commands.try_recv() {
            self.obey(command);
        }
        true
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Submit(job, canvases) => {
                self.jobs.insert(job.id, *job);
                self.canvases.extend(canvases);
            }
        }
    }

    /// Forgets requests whose client has gone.
    fn drop_cancelled(&mut self) {
        let gone: Vec<u64> = self.jobs.values().filter(|j| j.events.is_closed()).map(|j| j.id).collect();
        for id in gone {
            self.shared.stats.disconnected();
            self.retire(id);
        }
    }

    /// Removes a request and whatever is left of its canvases.
    fn retire(&mut self, job: u64) -> Option<Job> {
        let shared = &self.shared;
        self.canvases.retain(|c| {
            let leaves = c.job == job;
            if leaves {
                shared.leave(c.priority, c.begun.is_some());
            }
            !leaves
        });
        self.jobs.remove(&job)
    }

    fn tick(&mut self) {
        let began = Instant::now();
        let chosen = self.plan(began);
        if chosen.is_empty() {
            return;
        }
        let mut ids: Vec<u64> = Vec::with_capacity(chosen.len());
        for &i in &chosen {
            self.canvases[i].begin(began, &self.shared);
            ids.push(self.canvases[i].id);
        }
        let result = {
            let mut slots: Vec<Option<&mut Canvas>> = self.canvases.iter_mut().map(|c| Some(&mut c.canvas)).collect();
            let mut canvases: Vec<&mut Canvas> = chosen.iter().filter_map(|&i| slots[i].take()).collect();
            let (denoiser, model) = (&mut self.denoiser, self.model.backbone.as_ref());
            denoiser.step(model, &mut canvases)
        };
        self.shared.healthy.store(result.is_ok(), SeqCst);
        match result {
            Ok(tick) => self.after(&ids, tick, began),
            Err(error) => {
                tracing::error!(%error, canvases = ids.len(), "a forward failed");
                self.shared.stats.failed();
                for id in ids {
                    self.fail(id, &error.to_string());
                }
            }
        }
        self.shared.publish();
    }

    /// Who steps, deadlines applied.
    fn plan(&mut self, now: Instant) -> Vec<usize> {
        let budget = self.pace.budget(self.max_rows);
        let share = self.denoiser.savings.share_first_step;
        let candidate = |running: &Running| Candidate {
            id: running.id,
            class: running.priority,
            rows: running.canvas.rows(),
            urgent: false,
            shared: (share && running.canvas.is_fresh()).then_some(running.job),
        };
        let mut candidates: Vec<Candidate> = self.canvases.iter().map(candidate).collect();
        let longest = longest_ticks(&candidates, budget);
        for (running, candidate) in self.canvases.iter_mut().zip(&mut candidates) {
            let left = running.deadline.map(|deadline| deadline.saturating_duration_since(now));
            candidate.urgent = left.is_some_and(|left| self.pace.must_end(longest[candidate.class as usize], left));
            if candidate.urgent {
                running.canvas.rush();
                candidate.rows = running.canvas.rows();
            }
        }
        self.scheduler.plan(&candidates, budget, now - self.started)
    }

    /// Tells the clients, and retires what is done.
    fn after(&mut self, ids: &[u64], tick: Tick, began: Instant) {
        let mut stats = TickStats {
            canvases: ids.len(),
            rows: tick.batch.rows(),
            cached: tick.batch.reused(),
            cache_bytes: self.denoiser.caches.bytes(),
            split: tick.split,
            sampling: tick.sampling,
            ..TickStats::default()
        };
        let present = self.canvases.len();
        self.shared.shapes.note(tick.batch);
        for (&id, outcome) in ids.iter().zip(tick.outcomes) {
            match outcome {
                Ok(outcome) => self.report(id, outcome, &mut stats),
                Err(error) => self.fail(id, &error.to_string()),
            }
        }
        stats.wall = began.elapsed();
        self.pace.note(stats.rows, stats.wall);
        self.rate.note(present - self.canvases.len(), stats.wall);
        if let Some(interval) = self.rate.interval() {
            self.shared.note_interval(interval);
        }
        self.shared.stats.tick(&stats);
    }

    fn report(&mut self, id: u64, outcome: StepOutcome, stats: &mut TickStats) {
        let Some(at) = self.canvases.iter().position(|c| c.id == id) else { return };
        let running = &mut self.canvases[at];
        let Some(job) = self.jobs.get_mut(&running.job) else { return };
        stats.committed += outcome.commits.len();
        let stopped = running.find_stop(job);
        let finish = if stopped { Some(FinishReason::Stop) } else { outcome.finish };
        let index = running.index;
        running.send_step(job, outcome.step, &outcome.commits);
        if let Some(block) = outcome.block {
            job.offer(Event::Block { index, block });
        }
        let Some(reason) = finish else {
            let every = job.preview_every;
            if every > 0 && (outcome.step as usize + 1).is_multiple_of(every) {
                job.offer(Event::Preview { index, step: outcome.step, codes: running.canvas.partial() });
            }
            return;
        };
        self.shared.stats.completed(running.canvas.is_image());
        self.finish(at, reason);
    }

    fn finish(&mut self, at: usize, reason: FinishReason) {
        let running = self.canvases.remove(at);
        self.shared.leave(running.priority, true);
        let Some(job) = self.jobs.get_mut(&running.job) else { return };
        let id = running.job;
        job.finished(running, reason);
        if job.unfinished == 0 {
            self.jobs.remove(&id);
        }
    }

    /// Fails the request that a canvas belongs to.
    fn fail(&mut self, canvas: u64, cause: &str) {
        let Some(job) = self.canvases.iter().find(|c| c.id == canvas).map(|c| c.job) else { return };
        if let Some(job) = self.retire(job) {
            job.failed(EngineError::Device(cause.to_owned()));
        }
    }
}

/// Classes are ordered as they are scheduled; the scheduler indexes by them.
const _: () =
    assert!(Priority::Interactive as usize == 0 && Priority::Batch as usize == 1 && Priority::Rollout as usize == 2);
