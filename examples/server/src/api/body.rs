//! Bodies of requests: JSON, of a bounded size, in a bounded time, with the names of fields that are wrong.

use crate::app::App;
use crate::errors::ApiError;
use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::{header, HeaderMap, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use std::sync::Arc;

/// The fields of a body.
#[derive(Debug)]
pub struct Fields<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Arc<App>> for Fields<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        let most = usize::try_from(app.args.max_body_bytes).unwrap_or(usize::MAX);
        let (parts, body) = request.into_parts();
        check_type(&parts.headers)?;
        let bytes = match tokio::time::timeout(app.args.read_timeout, read(body, &parts.headers, most)).await {
            Ok(read) => read?,
            Err(_) => {
                let why = format!("the body did not come within {:?}", app.args.read_timeout);
                return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", why));
            }
        };
        parse(&bytes).map(Fields)
    }
}

/// A page of another origin may send any text without being asked, but not JSON.
fn check_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    match kind.eq_ignore_ascii_case("application/json") {
        true => Ok(()),
        false => {
            let why = format!("the content type is {kind:?}, wanted \"application/json\"");
            Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content_type", why))
        }
    }
}

async fn read(body: Body, headers: &HeaderMap, most: usize) -> Result<Vec<u8>, ApiError> {
    let too_large = || {
        let why = format!("the body is larger than {most} bytes");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", why)
    };
    let told = headers.get(header::CONTENT_LENGTH).and_then(|n| n.to_str().ok()).and_then(|n| n.parse::<u64>().ok());
    if told.is_some_and(|n| n > most as u64) {
        return Err(too_large());
    }
    match Limited::new(body, most).collect().await {
        Ok(all) => Ok(all.to_bytes().to_vec()),
        Err(error) if error.is::<LengthLimitError>() => Err(too_large()),
        Err(error) => Err(ApiError::new(
            StatusCode::BAD_REQUEST,
            "body_unreadable",
            format!("the body did not come whole: {error}"),
        )),
    }
}

/// Errors: 400 with the name of the field.
fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        let message = inner.to_string();
        if inner.is_syntax() || inner.is_eof() {
            return ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", format!("the body is no JSON: {message}"));
        }
        // Serde has the name of a field that is not known, or missing, in its words alone.
        let named = ["unknown field `", "missing field `", "duplicate field `"];
        let name = named.iter().find_map(|words| message.strip_prefix(words)?.split('`').next());
        let param = match (path.as_str(), name) {
            (".", Some(name)) => name.to_string(),
            (path, Some(name)) if !path.ends_with(name) => format!("{path}.{name}"),
            (path, _) => path.to_string(),
        };
        let unknown = message.starts_with("unknown field");
        let error = ApiError::field(param, &message);
        match unknown {
            true => ApiError {
                detail: crate::errors::ErrorDetail { code: Some("unsupported_value".into()), ..error.detail },
                ..error
            },
            false => error,
        }
    })?;
    json.end().map_err(|error| {
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", format!("something comes after the JSON: {error}"))
    })?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fields::{ChatRequest, CompletionRequest};

    fn of_chat(text: &str) -> (String, Option<String>) {
        let detail = parse::<ChatRequest>(text.as_bytes()).unwrap_err().detail;
        (detail.code.unwrap(), detail.param)
    }

    #[test]
    fn fields_that_are_wrong_are_named() {
        let message = r#""messages": [{"role": "user", "content": "a"}]"#;
        for (body, code, param) in [
            ("".to_string(), "invalid_json", None),
            ("{".to_string(), "invalid_json", None),
            (format!("{{{message}}} x"), "invalid_json", None),
            ("[1]".to_string(), "invalid_value", Some("[0]")),
            ("{}".to_string(), "invalid_value", Some("messages")),
            (format!("{{{message}, \"tools\": []}}"), "unsupported_value", Some("tools")),
            (format!("{{{message}, \"n\": \"2\"}}"), "invalid_value", Some("n")),
            (format!("{{{message}, \"n\": -1}}"), "invalid_value", Some("n")),
            (format!("{{{message}, \"n\": 1, \"n\": 2}}"), "invalid_value", Some("n")),
            (format!("{{{message}, \"stop\": [1]}}"), "invalid_value", Some("stop")),
            (
                r#"{"messages": [{"role": "tool", "content": "a"}]}"#.to_string(),
                "invalid_value",
                Some("messages[0].role"),
            ),
            (r#"{"messages": [{"role": "user"}]}"#.to_string(), "invalid_value", Some("messages[0].content")),
            (
                r#"{"messages": [{"role": "user", "content": 3}]}"#.to_string(),
                "invalid_value",
                Some("messages[0].content"),
            ),
            (format!("{{{message}, \"stream_options\": {{\"a\": 1}}}}"), "unsupported_value", Some("stream_options.a")),
        ] {
            assert_eq!(of_chat(&body), (code.to_string(), param.map(str::to_string)), "{body}");
        }
        assert!(parse::<ChatRequest>(format!("{{{message}, \"n\": null, \"seed\": -1}}").as_bytes()).is_ok());
        for prompt in ["\"a\"", "[1, 2]", "[[1], [2]]", "[\"a\", \"b\"]"] {
            assert!(parse::<CompletionRequest>(format!("{{\"prompt\": {prompt}}}").as_bytes()).is_ok(), "{prompt}");
        }
        for prompt in ["1", "[-1]", "[1, \"a\"]", "{}", "[[\"a\"]]"] {
            assert!(parse::<CompletionRequest>(format!("{{\"prompt\": {prompt}}}").as_bytes()).is_err(), "{prompt}");
        }
    }
}
