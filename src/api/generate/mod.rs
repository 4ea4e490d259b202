//! `POST /generate/text` and `/generate/image`.
//!
//! `text` and `image` check a body and turn it into a plan (`common`), pure; `run` takes the plan through the engine
//! and the log; `upload` reads pictures that come with a request; `reply` and `stream` are what comes back.

pub(super) mod check;
pub(super) mod common;
pub(super) mod image;
pub(super) mod picture;
pub(super) mod reply;
pub(super) mod run;
mod sampler;
pub(super) mod stream;
pub(super) mod template;
pub(super) mod text;
mod upload;
