//! Lacuna: an inference and sampling server for masked diffusion models, text and image, that learns from its users.

pub mod api;
pub mod api;
pub mod diffusion;
pub mod engine;
pub mod models;
pub mod starter;
pub mod store;
pub mod text;
