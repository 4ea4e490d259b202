//! Decisions about versions: into service, out of it, never. Each is in the audit trail.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use utoipa::ToSchema;

use super::RoutesInfo;
use crate::adapters::{AdapterError, VersionId};
use crate::api::error::{ApiError, Problem};
use crate::api::extract::{OptionalJson, Version};
use crate::api::generate::check::{self, FIXED};
use crate::api::limits::fixed;
use crate::api::state::App;
use crate::rl::RlError;
use crate::rl::publish::Order;

/// Who decides through this interface.
const OPERATOR: &str = "operator";

/// An approval.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ApproveRequest {
    /// For the audit trail, at most 500 characters.
    pub reason: Option<String>,
    /// Share of the users that get it first, as a canary; everybody when absent.
    #[schema(exclusive_minimum = 0, maximum = 1)]
    pub share: Option<f64>,
}

/// A refusal.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RejectRequest {
    /// For the audit trail, at most 500 characters.
    pub reason: Option<String>,
}

/// A way back.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RollbackRequest {
    /// What is served instead; by default a canary ends, or else the last good version before the active one returns.
    #[schema(example = "main@2")]
    pub to: Option<String>,
    /// For the audit trail, at most 500 characters.
    pub reason: Option<String>,
}

/// Puts a version into service: for everybody, or for a share of the users.
///
/// Requests under way keep the version they began with; later ones get this one. No request waits.
#[utoipa::path(post, path = "/adapters/{id}/approve", tag = "adapters", request_body = Option<ApproveRequest>,
    params(("id" = String, Path, example = "main@3")), responses(
    (status = 200, description = "What is served now.", body = RoutesInfo),
    (status = 400, description = "A field is wrong or outside its bounds.", body = Problem, content_type = "application/problem+json"),
    (status = 404, description = "No such version.", body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "Its status does not allow it, or somebody else was faster.", body = Problem, content_type = "application/problem+json"),
))]
pub(crate) async fn approve(
    State(app): State<App>,
    Version(id): Version,
    OptionalJson(body): OptionalJson<ApproveRequest>,
) -> Result<Json<RoutesInfo>, ApiError> {
    let order = order(body.reason, "approved")?;
    let share = body.share.map(|share| check::probability("share", share)).transpose()?;
    let routes = app.trainer()?.promote(&id, share, &order).await?;
    Ok(Json(RoutesInfo::from(&routes)))
}

/// Refuses a candidate for good.
#[utoipa::path(post, path = "/adapters/{id}/reject", tag = "adapters", request_body = Option<RejectRequest>,
    params(("id" = String, Path, example = "main@3")), responses(
    (status = 204, description = "Refused."),
    (status = 400, description = "A field is wrong or outside its bounds.", body = Problem, content_type = "application/problem+json"),
    (status = 404, description = "No such version.", body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "It is no candidate.", body = Problem, content_type = "application/problem+json"),
))]
pub(crate) async fn reject(
    State(app): State<App>,
    Version(id): Version,
    OptionalJson(body): OptionalJson<RejectRequest>,
) -> Result<StatusCode, ApiError> {
    let order = order(body.reason, "rejected")?;
    app.trainer()?.publisher().reject(&id, &order).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Takes back the canary, or else the active version.
#[utoipa::path(post, path = "/adapters/rollback", tag = "adapters", request_body = Option<RollbackRequest>, responses(
    (status = 200, description = "What is served now.", body = RoutesInfo),
    (status = 400, description = "A field is wrong or outside its bounds.", body = Problem, content_type = "application/problem+json"),
    (status = 404, description = "`to` is no version.", body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "Nothing to take back, or `to` cannot be served.", body = Problem, content_type = "application/problem+json"),
))]
pub(crate) async fn roll_back(
    State(app): State<App>,
    OptionalJson(body): OptionalJson<RollbackRequest>,
) -> Result<Json<RoutesInfo>, ApiError> {
    let order = order(body.reason, "rolled back")?;
    let to = body.to.map(|to| to.parse::<VersionId>());
    let to = to.transpose().map_err(|error: AdapterError| RlError::from(error))?;
    let routes = app.trainer()?.publisher().roll_back(to.as_ref(), &order).await?;
    Ok(Json(RoutesInfo::from(&routes)))
}

/// An order with this reason.
pub(super) fn order(reason: Option<String>, default: &str) -> Result<Order, ApiError> {
    let reason = reason.unwrap_or_else(|| default.to_owned());
    check::chars("reason", &reason, fixed::REASON_CHARS, FIXED)?;
    Ok(Order { actor: OPERATOR.to_owned(), reason, term: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_bounded_and_have_a_default() {
        assert_eq!(order(None, "approved").unwrap().reason, "approved");
        let problem = order(Some("x".repeat(501)), "").unwrap_err().problem();
        assert_eq!((problem.field.as_deref(), problem.limit), (Some("reason"), Some(500.into())));
    }
}
