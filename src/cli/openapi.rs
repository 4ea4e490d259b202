//! `lacuna openapi`: prints the OpenAPI document.

use std::process::ExitCode;

use super::term;

/// Runs the command.
///
/// # Errors
/// When the document cannot be written as JSON.
pub fn run() -> anyhow::Result<ExitCode> {
    term::part(crate::api::openapi::document()?);
    Ok(ExitCode::SUCCESS)
}
