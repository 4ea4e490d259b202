//! `POST /preferences`: which of several completions of one prompt is better. A 201 means that it is on stable storage.

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::error::{ApiError, Problem};
use super::extract::Json;
use super::feedback::completion_id;
use super::generate::check::{self, FIXED};
use super::generate::common::user;
use super::idempotency::{self, Identity};
use super::metrics;
use super::state::App;
use crate::store::{MAX_RANKED, NewPreference, StoreError, SubjectKey};

/// A choice between two completions, or a ranking of several; all of one prompt.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"chosen": "0199b3a4-7c1e-7d10-8a00-000000000000", "rejected": "0199b3a4-7c1e-7d10-8a00-000000000001"}))]
pub(crate) struct PreferenceRequest {
    /// The better one of two.
    pub chosen: Option<String>,
    /// The worse one of two.
    pub rejected: Option<String>,
    /// Neither of the two is better.
    #[serde(default)]
    pub tie: bool,
    /// Instead of the two: 2 to 16 completions, best first; those in one inner list are equally good.
    #[schema(min_items = 2, max_items = 16)]
    pub ranking: Option<Vec<Rank>>,
    /// How sure the rater is, 0 to 1.
    #[schema(minimum = 0, maximum = 1)]
    pub strength: Option<f64>,
    /// Id of the rater; only a keyed hash is kept. A rater's newest ranking of the same completions counts.
    pub user: Option<String>,
}

/// A place in a ranking.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected the id of a completion, or a list of ids that are equally good")]
pub(crate) enum Rank {
    /// One completion.
    One(String),
    /// Several that are equally good.
    Ties(Vec<String>),
}

/// The answer to a preference.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PreferenceReply {
    /// Its id.
    pub preference_id: Uuid,
    /// Pairs that it stands for.
    pub pairs: u32,
}

/// Ranks completions of one prompt.
///
/// With an `Idempotency-Key` a repeated request is stored once: it gets the first answer, with the header
/// `Idempotency-Replayed: true`. Keys are not shared with those of ratings.
#[utoipa::path(post, path = "/preferences", tag = "feedback", request_body = PreferenceRequest,
    params(("Idempotency-Key" = Option<String>, Header, description = "Up to 255 bytes.")), responses(
    (status = 201, description = "On stable storage.", body = PreferenceReply),
    (status = 400, description = "A field is wrong or outside its bounds.", body = Problem, content_type = "application/problem+json"),
    (status = 404, description = "A completion is not in the log.", body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "The completions are of different prompts.", body = Problem, content_type = "application/problem+json"),
    (status = 422, description = "The key was used with another body.", body = Problem, content_type = "application/problem+json"),
    (status = 503, description = "The log is busy; see Retry-After.", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn add_preference(
    State(app): State<App>,
    headers: HeaderMap,
    Json { value, bytes }: Json<PreferenceRequest>,
) -> Result<Response, ApiError> {
    let fields = (value.chosen.clone(), value.ranking.is_some());
    let preference = value.check(Identity::of(&headers, &bytes)?, &app.subjects)?;
    let ack = app.store.add_preference(preference).await.map_err(|error| named(error, &fields))?;
    if !ack.replayed {
        metrics::preferred();
    }
    Ok(idempotency::created(PreferenceReply { preference_id: ack.id, pairs: ack.pairs }, ack.replayed))
}

/// The log's error, with the field that named the completion.
fn named(error: StoreError, (chosen, ranking): &(Option<String>, bool)) -> ApiError {
    let StoreError::UnknownCompletion(id) = error else { return error.into() };
    let is_chosen = chosen.as_deref().and_then(|chosen| chosen.parse().ok()) == Some(id);
    let field = match (ranking, is_chosen) {
        (true, _) => "ranking",
        (false, true) => "chosen",
        (false, false) => "rejected",
    };
    ApiError::unknown_completion(field, id)
}

impl PreferenceRequest {
    /// Checks every field; pure.
    fn check(self, identity: Identity, subjects: &SubjectKey) -> Result<NewPreference, ApiError> {
        user(self.user.as_deref())?;
        self.strength.map(|strength| check::number("strength", strength, 0.0, 1.0)).transpose()?;
        Ok(NewPreference {
            ranking: ranking(self.chosen, self.rejected, self.tie, self.ranking)?,
            strength: self.strength,
            subject_hash: self.user.as_deref().map(|user| subjects.hash_subject(user)),
            idempotency_key: identity.key,
            body_sha256: identity.body_sha256,
        })
    }
}

/// One ranking of whatever was sent.
fn ranking(
    chosen: Option<String>,
    rejected: Option<String>,
    tie: bool,
    ranking: Option<Vec<Rank>>,
) -> Result<Vec<Vec<Uuid>>, ApiError> {
    const HINT: &str = "send chosen and rejected, or ranking";
    match (chosen, rejected, ranking) {
        (Some(chosen), Some(rejected), None) => {
            let (chosen, rejected) = (completion_id("chosen", &chosen)?, completion_id("rejected", &rejected)?);
            if chosen == rejected {
                return Err(ApiError::invalid("rejected", "is the chosen completion", "name two completions"));
            }
            Ok(if tie { vec![vec![chosen, rejected]] } else { vec![vec![chosen], vec![rejected]] })
        }
        (None, None, Some(_)) if tie => {
            Err(ApiError::invalid("tie", "is of two completions only", "in a ranking, put ties in an inner list"))
        }
        (None, None, Some(ranking)) => ranked(ranking),
        (Some(_), None, None) => Err(ApiError::invalid("rejected", "is missing", HINT)),
        (None, Some(_), None) => Err(ApiError::invalid("chosen", "is missing", HINT)),
        (None, None, None) => Err(ApiError::invalid("ranking", "is missing", HINT)),
        (_, _, Some(_)) => Err(ApiError::invalid("ranking", "cannot be sent together with chosen or rejected", HINT)),
    }
}

fn ranked(ranking: Vec<Rank>) -> Result<Vec<Vec<Uuid>>, ApiError> {
    let ranks: Vec<Vec<String>> = ranking
        .into_iter()
        .map(|rank| match rank {
            Rank::One(id) => vec![id],
            Rank::Ties(ids) => ids,
        })
        .collect();
    check::count("ranking", ranks.iter().map(Vec::len).sum(), MAX_RANKED, FIXED)?;
    let ids = |ids: Vec<String>| ids.iter().map(|id| completion_id("ranking", id)).collect();
    ranks.into_iter().map(ids).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn checked(body: Value) -> Result<Vec<Vec<Uuid>>, ApiError> {
        let request: PreferenceRequest = serde_json::from_value(body).unwrap();
        let identity = Identity { key: None, body_sha256: vec![] };
        request.check(identity, &SubjectKey::new([1; 32])).map(|preference| preference.ranking)
    }

    fn id(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    #[test]
    fn every_form_is_a_ranking() {
        let pair = json!({"chosen": id(1), "rejected": id(2)});
        assert_eq!(checked(pair).unwrap(), [[id(1)], [id(2)]]);
        let tie = json!({"chosen": id(1), "rejected": id(2), "tie": true});
        assert_eq!(checked(tie).unwrap(), [[id(1), id(2)]]);
        let several = json!({"ranking": [id(3), [id(1), id(2)]]});
        assert_eq!(checked(several).unwrap(), [vec![id(3)], vec![id(1), id(2)]]);
    }

    #[test]
    fn what_is_no_preference_names_the_field() {
        let field = |body| checked(body).unwrap_err().problem().field.unwrap();
        assert_eq!(field(json!({})), "ranking");
        assert_eq!(field(json!({"chosen": id(1)})), "rejected");
        assert_eq!(field(json!({"rejected": id(1)})), "chosen");
        assert_eq!(field(json!({"chosen": id(1), "rejected": id(1)})), "rejected");
        assert_eq!(field(json!({"chosen": id(1), "ranking": [id(1), id(2)]})), "ranking");
        assert_eq!(field(json!({"ranking": [id(1), id(2)], "tie": true})), "tie");
        assert_eq!(field(json!({"chosen": id(1), "rejected": id(2), "strength": 1.5})), "strength");
        assert_eq!(field(json!({"chosen": id(1), "rejected": id(2), "user": "x".repeat(257)})), "user");
        assert_eq!(field(json!({"chosen": "nope", "rejected": id(2)})), "chosen");
        let long: Vec<Uuid> = (0..17).map(id).collect();
        let problem = checked(json!({"ranking": long})).unwrap_err().problem();
        assert_eq!((problem.status, problem.limit), (400, Some(16.into())));
        let nested = checked(json!({"ranking": [id(1), ["nope"]]})).unwrap_err().problem();
        assert_eq!((nested.status, nested.field.as_deref()), (404, Some("ranking")));
    }
}
