//! Lacuna: an inference and sampling server for masked diffusion models, text and image, that learns from its users.
//!
//! Start reading at `diffusion::denoise`, one step of any mix of canvases; then `engine`, which decides who steps;
//! then `api`, the routes. DESIGN in one line: the scheduler has no tensors, the runner no policy, handlers no logic.

pub mod adapters;
pub mod api;
pub mod cli;
pub mod config;
pub mod diffusion;
pub mod engine;
pub mod hub;
pub mod models;
pub mod net;
pub mod rl;
pub mod starter;
pub mod store;
pub mod telemetry;
pub mod text;
