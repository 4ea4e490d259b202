//! Concurrency without maths: the handle that the rest of the server talks to, the pure scheduler, the device thread.
//!
//! `job` is the vocabulary, `admit` turns requests into canvases, `scheduler` decides who steps (no tensors) under the
//! budget that `pace` learns from the ticks, `runner` is the one thread that owns the device, `ticket` and `transcript`
//! are the client's side of a request.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, RwLock};
use std::time::Instant;

use image::{Rgb, RgbImage};
use tokio::sync::mpsc;
use uuid::Uuid;

mod admit;
pub mod job;
pub mod pace;
mod runner;
mod running;
pub mod scheduler;
pub mod serving;
mod shared;
pub mod stats;
mod ticket;
mod transcript;

pub use job::{Event, Finished, Request};
pub use serving::Serving;
pub use stats::Counters;
pub use ticket::{Events, Ticket};

use crate::models::{Model, ModelError, ModelSpec, Packed};
use job::{Priority, Task};
use runner::{Command, Runner};
use running::{Job, Running};
use shared::Shared;

/// Step, block and preview events that may wait for a slow client; later ones are merged or dropped.
const EVENTS: usize = 64;
/// What a masked cell looks like.
const BLANK: Rgb<u8> = Rgb([128, 128, 128]);

/// Why the engine refused or failed a request.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EngineError {
    /// The request cannot be served by this model or within its limits.
    #[error("{field}: {message}")]
    Invalid {
        /// The request field at fault.
        field: &'static str,
        /// Limit, actual value and what to do.
        message: String,
    },
    /// The queue is full.
    #[error("the queue is full: {limit} canvases are waiting; retry in {retry_after_s} s")]
    Full {
        /// Canvases that may wait.
        limit: usize,
        /// Honest estimate.
        retry_after_s: u64,
    },
    /// The server is shutting down.
    #[error("the server is draining and takes no new requests")]
    Draining,
    /// The device failed.
    #[error("the model failed: {0}")]
    Device(String),
}

/// Bounds on what is admitted; every one has a flag.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Canvases waiting for their first step (a request of `n` counts `n`); classes below interactive fill three quarters.
    pub max_queue: usize,
    /// Rows of one packed forward.
    pub max_rows: usize,
    /// Canvases stepping at the same time.
    pub max_running: usize,
    /// Bytes of keys and values kept between ticks; canvases without room compute theirs again.
    pub max_cache_bytes: usize,
}

/// What the engine is doing now; for `/info`, `/ready` and metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Status {
    /// Canvases waiting for their first step.
    pub queued: usize,
    /// Canvases stepping.
    pub running: usize,
    /// Of both, those of interactive requests: somebody waits for them.
    pub interactive: usize,
    /// The last forward succeeded and the thread is alive.
    pub healthy: bool,
    /// New requests are refused.
    pub draining: bool,
}

/// The door to the device thread. Cheap to clone; the thread ends when the last clone is gone and all is done.
#[derive(Clone)]
pub struct Engine {
    model: Model,
    spec: Arc<ModelSpec>,
    limits: Arc<Limits>,
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    ids: Arc<AtomicU64>,
    serving: Arc<RwLock<Arc<Serving>>>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("model", &self.spec.name).field("status", &self.status()).finish_non_exhaustive()
    }
}

impl Engine {
    /// Starts the device thread, and those that compute with it: as many as the global pool has.
    ///
    /// # Errors
    /// `Device` when the operating system gives no threads.
    pub fn start(model: Model, limits: Limits) -> Result<Self, EngineError> {
        let shared = Arc::new(Shared::new());
        // A request holds at least one of `max_queue` places, so the channel is never full.
        let (commands, receiver) = mpsc::channel(limits.max_queue.max(1));
        let runner = Runner::new(model.clone(), &limits, receiver, Arc::clone(&shared));
        let alive = Alive(Arc::clone(&shared));
        // The device thread is one of those that compute. From outside of them, each forward would wake one and sleep
        // until it is done.
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(rayon::current_num_threads())
            .thread_name(|i| format!("lacuna-device-{i}"))
            // `Alive` tells of it.
            .panic_handler(|_| {})
            .build()
            .map_err(|e| EngineError::Device(format!("the device threads did not start: {e}")))?;
        pool.spawn(move || {
            let _alive = alive;
            runner.run();
        });
        let spec = Arc::new(model.backbone.spec().clone());
        let (ids, serving) = (Arc::new(AtomicU64::new(0)), Arc::new(RwLock::new(Arc::default())));
        Ok(Self { model, spec, limits: Arc::new(limits), shared, commands, ids, serving })
    }

    /// What is served.
    #[must_use]
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// What is admitted.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// What is served, for learning from it.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The adapters that can be asked for, and who gets which.
    #[must_use]
    pub fn serving(&self) -> Arc<Serving> {
        // A value is replaced whole, so one that a panicking thread left behind is as good as any.
        Arc::clone(&self.serving.read().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// From now on new requests are served by `serving`. Nothing waits: the pointer is exchanged, no tick is delayed, and
    /// what is queued or running keeps the version that it began with.
    pub fn publish(&self, serving: Serving) {
        *self.serving.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Arc::new(serving);
    }

    /// Checks, tokenises and queues a request. Never waits.
    ///
    /// # Errors
    /// `Invalid`, `Full` or `Draining`; nothing is queued then.
    pub fn submit(&self, request: Request) -> Result<Ticket, EngineError> {
        let submitted = Instant::now();
        if self.status().draining {
            return Err(EngineError::Draining);
        }
        let mut admitted = admit::admit(&self.model, &request, &self.limits)?;
        let group = Uuid::now_v7();
        let key = group.as_u128() as u64;
        let assigned = self.serving().assign(request.adapter.as_ref(), request.subject.as_deref(), key)?;
        for canvas in &mut admitted.canvases {
            canvas.adapt(assigned.adapter.lora.clone());
        }
        let n = admitted.canvases.len();
        let (events, frames) = mpsc::channel(EVENTS + n + 1);
        let reserved = (0..=n).map_while(|_| events.clone().try_reserve_owned().ok()).collect();
        let id = self.ids.fetch_add(n as u64 + 1, SeqCst);
        let completions: Vec<Uuid> = (0..n).map(|_| Uuid::now_v7()).collect();
        let deadline = request.deadline.and_then(|d| submitted.checked_add(d));
        let places = admitted.canvases.into_iter().zip(&completions).zip(0u32..);
        let running = places.map(|((canvas, &uuid), index)| Running {
            id: id + 1 + u64::from(index),
            job: id,
            index,
            uuid,
            canvas,
            priority: request.priority,
            deadline,
            begun: None,
            edits: Vec::new(),
            searched: 0,
        });
        let style = admitted.style;
        let job = Job {
            id,
            events,
            reserved,
            unfinished: n,
            submitted,
            follow: request.follow,
            preview_every: match &request.task {
                Task::Image(params) if request.follow => params.preview_every,
                _ => 0,
            },
            style: style.clone(),
        };
        self.enqueue(job, running.collect())?;
        Ok(Ticket { group, assigned, completions, events: Events::new(frames, style, request.follow) })
    }

    fn enqueue(&self, job: Job, canvases: Vec<Running>) -> Result<(), EngineError> {
        let (n, max) = (canvases.len(), self.limits.max_queue);
        let class = canvases.first().map(|canvas| canvas.priority).unwrap_or_default();
        let limit = places(max, class);
        let Some(ahead) = self.shared.enter(class, n, limit, max) else {
            let excess = (self.status().queued + n).saturating_sub(limit);
            return Err(EngineError::Full { limit, retry_after_s: self.shared.retry_after(excess) });
        };
        // Looked at again after the places are taken: either this sees the switch, or `drain` sees the places.
        if self.status().draining {
            self.shared.withdraw(class, n);
            return Err(EngineError::Draining);
        }
        job.offer(Event::Queued { ahead });
        self.commands.try_send(Command::Submit(Box::new(job), canvases)).map_err(|e| {
            self.shared.withdraw(class, n);
            match e {
                mpsc::error::TrySendError::Full(_) => {
                    EngineError::Full { limit, retry_after_s: self.shared.retry_after(n) }
                }
                mpsc::error::TrySendError::Closed(_) => EngineError::Device("the engine has stopped".to_owned()),
            }
        })
    }

    /// The picture of a grid of codes; masked cells (`None`) are drawn as an even neutral cell.
    ///
    /// # Errors
    /// `Invalid` when the model has no image side or a code is outside the codebook.
    pub fn render(&self, codes: &[Option<u32>], grid: (usize, usize)) -> Result<RgbImage, EngineError> {
        let codec = self.codec()?;
        let known: Vec<u32> = codes.iter().map(|code| code.unwrap_or(0)).collect();
        let mut picture = codec.decode(&known, grid).map_err(|e| refused("codes", &e))?;
        let (rows, columns) = (grid.0.max(1) as u32, grid.1.max(1) as u32);
        let (height, width) = (picture.height() / rows, picture.width() / columns);
        for (cell, _) in codes.iter().enumerate().filter(|(_, code)| code.is_none()) {
            let (top, left) = (cell as u32 / columns * height, cell as u32 % columns * width);
            for y in top..(top + height).min(picture.height()) {
                for x in left..(left + width).min(picture.width()) {
                    picture.put_pixel(x, y, BLANK);
                }
            }
        }
        Ok(picture)
    }

    /// It draws: codes can be made pictures.
    #[must_use]
    pub fn draws(&self) -> bool {
        self.model.codec.is_some()
    }

    /// It looks at pictures: a text may be about one.
    #[must_use]
    pub fn looks(&self) -> bool {
        self.draws() && self.model.layout.seen_prefix(&[], &[]).is_some()
    }

    /// The codes of a picture, for inpainting or to be looked at.
    ///
    /// # Errors
    /// `Invalid` when the model has no image side or cannot encode the picture.
    pub fn encode_image(&self, picture: &RgbImage, grid: (usize, usize)) -> Result<Vec<u32>, EngineError> {
        self.codec()?.encode(picture, grid).map_err(|e| refused("image", &e))
    }

    fn codec(&self) -> Result<&dyn crate::models::ImageCodec, EngineError> {
        self.model.codec.as_deref().ok_or_else(|| {
            let reason = match self.spec.image {
                Some(_) => "is served without an image codec; name one with --codec",
                None => "has no image side; ask for text instead",
            };
            EngineError::Invalid { field: "model", message: format!("{} {reason}", self.spec.name) }
        })
    }

    /// Text of ids, special ids left out.
    #[must_use]
    pub fn detokenize(&self, ids: &[u32]) -> String {
        self.model.tokenizer.decode(ids)
    }

    /// What it is doing now.
    #[must_use]
    pub fn status(&self) -> Status {
        self.shared.status()
    }

    /// A fair sample of the shapes of the batches run since this was last asked, at most 64; ids are blank.
    #[must_use]
    pub fn take_shapes(&self) -> Vec<Packed> {
        self.shared.shapes.take()
    }

    /// Sums since the start; subtract two readings to measure what lies between them.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.shared.stats.read()
    }

    /// Refuses new requests from now on and returns when the running ones are done.
    pub async fn drain(&self) {
        let mut changed = self.shared.changed.subscribe();
        self.shared.draining.store(true, SeqCst);
        loop {
            let status = self.status();
            if status.queued + status.running == 0 || self.commands.is_closed() {
                return;
            }
            if changed.changed().await.is_err() {
                return;
            }
        }
    }
}

/// How many of `max` places a class may wait in: the last quarter is for those whom somebody waits for, so that no flood
/// of the others shuts them out.
fn places(max: usize, class: Priority) -> usize {
    if class == Priority::Interactive { max } else { max - max / 4 }
}

fn refused(field: &'static str, error: &ModelError) -> EngineError {
    EngineError::Invalid { field, message: error.to_string() }
}

/// Tells the rest when the thread is gone, however it went.
struct Alive(Arc<Shared>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.healthy.store(false, SeqCst);
        self.0.changed.send_replace(());
    }
}
