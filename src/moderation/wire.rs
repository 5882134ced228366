//! Questions and answers as JSON.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::client::ModerationError;
use crate::domain::ids::KeyId;
use crate::domain::review::{Review, Subject};

/// Longest reason that is kept, in characters.
const REASON_CHARS_MAX: usize = 200;
/// The reason of a refusal that gives none.
const NO_REASON: &str = "the operator's moderation gave no reason";

#[derive(Serialize)]
struct Question<'a> {
    stage: &'static str,
    job_id: String,
    /// `null` for an image of the console.
    key_id: Option<String>,
    model: &'a str,
    #[serde(flatten)]
    content: Content<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Content<'a> {
    Prompt {
        prompt: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        prompt_2: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        negative_prompt: Option<&'a str>,
    },
    Image {
        /// Base64.
        image: String,
        media_type: &'static str,
    },
}

/// An answer. Further members have no meaning.
#[derive(Deserialize)]
struct Answered {
    allow: bool,
    #[serde(default)]
    reason: Option<String>,
}

/// What the service says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) is_allowed: bool,
    /// One short line, for a refusal.
    pub(super) reason: String,
}

/// A question as JSON.
pub(super) fn question(review: &Review) -> Vec<u8> {
    let content = match &review.subject {
        Subject::Prompt { prompt, prompt_2, negative_prompt } => {
            let (prompt_2, negative_prompt) = (prompt_2.as_deref(), negative_prompt.as_deref());
            Content::Prompt { prompt, prompt_2, negative_prompt }
        }
        Subject::Image { bytes, format } => {
            Content::Image { image: STANDARD.encode(bytes), media_type: format.content_type() }
        }
    };
    let question = Question {
        stage: review.stage().as_str(),
        job_id: review.job.to_string(),
        key_id: Some(review.owner).filter(|owner| *owner != KeyId::NONE).map(|owner| owner.to_string()),
        model: review.model.as_str(),
        content,
    };
    serde_json::to_vec(&question).expect("texts are JSON")
}

/// An answer from JSON.
pub(super) fn answer(body: &[u8]) -> Result<Answer, ModerationError> {
    let Answered { allow, reason } = serde_json::from_slice(body).map_err(|_| ModerationError::Malformed)?;
    let reason: String = reason.unwrap_or_default().chars().filter(|letter| !letter.is_control()).collect();
    let reason: String = reason.trim().chars().take(REASON_CHARS_MAX).collect();
    let reason = if reason.is_empty() { NO_REASON.to_owned() } else { reason };
    Ok(Answer { is_allowed: allow, reason })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::domain::format::OutputFormat;
    use crate::domain::ids::{JobId, ModelId};

    fn asked(owner: KeyId, subject: Subject) -> Value {
        let review = Review { job: JobId::generate(), owner, model: ModelId::new("a/b"), subject };
        let mut asked: Value = serde_json::from_slice(&question(&review)).expect("JSON");
        assert_eq!(asked["job_id"], review.job.to_string());
        asked["job_id"].take();
        asked
    }

    #[test]
    fn a_question_has_what_is_to_be_judged_and_nothing_else() {
        let owner = KeyId::generate();
        let texts = Subject::Prompt { prompt: "a fox".into(), prompt_2: None, negative_prompt: Some("rain".into()) };
        let expected = json!({
            "stage": "before", "job_id": null, "key_id": owner.to_string(), "model": "a/b",
            "prompt": "a fox", "negative_prompt": "rain",
        });
        assert_eq!(asked(owner, texts), expected);
        let image = Subject::Image { bytes: b"hi".to_vec(), format: OutputFormat::Png };
        let expected = json!({
            "stage": "after", "job_id": null, "key_id": null, "model": "a/b", "image": "aGk=", "media_type": "image/png",
        });
        assert_eq!(asked(KeyId::NONE, image), expected);
    }

    #[test]
    fn an_answer_is_strict_about_its_verdict_and_short_about_its_reason() {
        let read = |body: &str| answer(body.as_bytes()).ok().map(|answer| (answer.is_allowed, answer.reason));
        let no_reason = || NO_REASON.to_owned();
        assert_eq!(read(r#"{"allow": true, "score": 0.1}"#), Some((true, no_reason())));
        assert_eq!(read(r#"{"allow": false, "reason": " no\nfoxes "}"#), Some((false, "nofoxes".to_owned())));
        assert_eq!(read(r#"{"allow": false, "reason": null}"#), Some((false, no_reason())));
        let long = format!(r#"{{"allow": false, "reason": "{}"}}"#, "ü".repeat(1000));
        assert_eq!(read(&long).map(|(_, reason)| reason.chars().count()), Some(REASON_CHARS_MAX));
        for body in ["", "{}", "true", r#"{"allow": "true"}"#, r#"{"allow": 1}"#, r#"{"allow": true, "allow": false}"#]
        {
            assert_eq!(read(body), None, "{body}");
        }
    }
}
