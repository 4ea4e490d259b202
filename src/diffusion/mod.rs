//! The algorithm: masked canvases, what a step does to them, and how tokens are drawn and chosen.
//!
//! Start reading at `denoise.rs`. Knows the model only through `models::Backbone`; no channels, no HTTP, no storage.

mod batch;
pub mod cache;
pub mod canvas;
pub mod denoise;
pub mod frame;
pub mod guidance;
mod memo;
pub mod params;
pub mod rng;
pub mod sample;
pub mod schedule;
mod select;
mod softmax;

pub use canvas::Canvas;
pub use denoise::{DenoiseError, Denoiser, Savings, Tick};
