//! What a client is told that gets no answer.

use axum::http::{header, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::Json;
use latten::ErrorKind;
use serde::Serialize;
use utoipa::ToSchema;

/// A request that failed, in the words of OpenAI's interface.
#[derive(Debug, Clone)]
pub struct ApiError {
    pub status: StatusCode,
    pub detail: ErrorDetail,
    /// Seconds after which it may be tried again.
    pub retry_after: Option<u32>,
}

/// The body of every answer that is an error.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ErrorBody {
    pub error: ErrorDetail,
}

/// What went wrong.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ErrorDetail {
    /// For a person.
    pub message: String,
    /// `invalid_request_error`, `authentication_error`, `not_found_error`, `rate_limit_error` or `server_error`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The field of the request that is wrong, if it is one.
    #[schema(required)]
    pub param: Option<String>,
    /// The kind of error, for code.
    #[schema(required)]
    pub code: Option<String>,
}

impl ApiError {
    pub fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        let kind = match status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::NOT_FOUND => "not_found_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_client_error() => "invalid_request_error",
            _ => "server_error",
        };
        let detail = ErrorDetail { message: message.into(), kind: kind.into(), param: None, code: Some(code.into()) };
        ApiError { status, detail, retry_after: None }
    }

    /// A field whose value is not one that can be taken.
    pub fn field(param: impl Into<String>, why: impl std::fmt::Display) -> Self {
        let param = param.into();
        let error = Self::new(StatusCode::BAD_REQUEST, "invalid_value", format!("{param}: {why}"));
        error.about(param)
    }

    /// A field that this server does not have.
    pub fn unsupported(param: impl Into<String>) -> Self {
        let param = param.into();
        let message = format!("{param} is not supported by this server: leave it out");
        Self::new(StatusCode::BAD_REQUEST, "unsupported_value", message).about(param)
    }

    pub fn about(mut self, param: impl Into<String>) -> Self {
        self.detail.param = Some(param.into());
        self
    }

    pub fn retry(self, seconds: u32) -> Self {
        ApiError { retry_after: Some(seconds), ..self }
    }

    /// It does not take requests yet, or no more.
    pub fn unavailable(code: &str, message: &str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message).retry(5)
    }

    /// What the library says of a request.
    pub fn of(error: &latten::Error) -> Self {
        let message = error.to_string();
        match error.kind() {
            ErrorKind::Argument { name: "max_new_tokens", .. } => {
                Self::new(StatusCode::BAD_REQUEST, "context_length_exceeded", message).about("max_tokens")
            }
            ErrorKind::CacheFull { .. } => {
                let why = format!("the request is larger than the whole cache: {message}");
                Self::new(StatusCode::BAD_REQUEST, "context_length_exceeded", why).about("max_tokens")
            }
            ErrorKind::Grammar { .. } => {
                Self::new(StatusCode::BAD_REQUEST, "invalid_grammar", message).about("response_format")
            }
            ErrorKind::Argument { name, .. } => {
                Self::new(StatusCode::BAD_REQUEST, "invalid_value", message).about(*name)
            }
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message),
        }
    }

    pub fn body(&self) -> ErrorBody {
        ErrorBody { error: self.detail.clone() }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
