//! The algorithm: masked canvases, what a step does to them, and how tokens are drawn and chosen.
//!
//! Start reading at `denoise.rs`. Knows the model only through `models::Backbone`; no channels, no HTTP, no storage.

pub mod rng;
