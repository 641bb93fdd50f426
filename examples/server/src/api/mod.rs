//! The endpoints.

pub mod answers;
pub mod body;
mod common;
pub mod fields;
mod generation;
mod stream;
mod words;

use crate::app::App;
use crate::errors::{ApiError, ErrorBody, ErrorDetail};
use answers::{Health, ModelCard, ModelList};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{header, HeaderValue, Method, StatusCode};
use axum::middleware::{from_fn_with_state, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use std::sync::Arc;
use std::time::Duration;
use tower_http::cors::{AllowOrigin, CorsLayer};
use tracing::debug;
use utoipa::OpenApi;

const PAGE: &str = include_str!("../page.html");

/// All endpoints.
///
/// Errors: an origin that is none, in words.
pub fn router(app: &Arc<App>) -> Result<Router, String> {
    let own = Router::new()
        .route("/v1/models", get(models))
        .route("/v1/chat/completions", post(generation::chat))
        .route("/v1/completions", post(generation::complete))
        .route("/tokenize", post(words::tokenize))
        .route("/detokenize", post(words::detokenize))
        .route("/metrics", get(metrics))
        .route_layer(from_fn_with_state(app.clone(), check_key));
    let all = Router::new()
        .route("/", get(page))
        .route("/health", get(health))
        .route("/openapi.json", get(openapi))
        .merge(own)
        .fallback(not_found)
        .method_not_allowed_fallback(not_allowed)
        .layer(from_fn_with_state(app.clone(), count))
        .with_state(app.clone());
    Ok(match app.args.allow_origin.as_slice() {
        [] => all,
        origins => all.layer(cors(origins)?),
    })
}

fn cors(origins: &[String]) -> Result<CorsLayer, String> {
    let layer = CorsLayer::new()
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([header::CONTENT_TYPE, header::AUTHORIZATION])
        .max_age(Duration::from_secs(600));
    if origins.iter().any(|origin| origin == "*") {
        return Ok(layer.allow_origin(AllowOrigin::any()));
    }
    let origins = origins.iter().map(|origin| origin.parse::<HeaderValue>().map_err(|e| format!("{origin:?}: {e}")));
    Ok(layer.allow_origin(AllowOrigin::list(origins.collect::<Result<Vec<_>, _>>()?)))
}

async fn check_key(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    match app.check_key(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

/// Counts answers; what a client sent is in no log.
async fn count(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let matched = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_string());
    let path = matched.unwrap_or_else(|| "other".into());
    let mut response = next.run(request).await;
    let status = response.status();
    app.metrics.responses.with_label_values(&[path.as_str(), status.as_str()]).inc();
    if status.is_client_error() || status.is_server_error() {
        debug!(path, status = status.as_u16(), "refused");
    }
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

async fn not_found() -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "not_found", "no such path; /openapi.json lists those that there are")
}

async fn not_allowed() -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        "this path has another method; see /openapi.json",
    )
}

async fn page() -> Response {
    let policy =
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:";
    let headers = [
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy)),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    (headers, Html(PAGE)).into_response()
}

/// Whether requests are taken.
#[utoipa::path(get, path = "/health", responses(
    (status = 200, body = Health), (status = 503, description = "Not yet, or no more", body = ErrorBody)
))]
async fn health(State(app): State<Arc<App>>) -> Result<Json<Health>, ApiError> {
    let (served, _) = app.ready()?;
    Ok(Json(Health { status: "ok", model: served.name.clone() }))
}

/// The model that is served.
#[utoipa::path(get, path = "/v1/models", security((), ("key" = [])), responses(
    (status = 200, body = ModelList), (status = 401, body = ErrorBody), (status = 503, body = ErrorBody)
))]
async fn models(State(app): State<Arc<App>>) -> Result<Json<ModelList>, ApiError> {
    let (served, _) = app.ready()?;
    let card = ModelCard {
        id: served.name.clone(),
        object: "model",
        created: served.created,
        owned_by: "latten",
        max_model_len: served.context,
    };
    Ok(Json(ModelList { object: "list", data: vec![card] }))
}

/// What the server counts and times, as Prometheus reads it.
#[utoipa::path(get, path = "/metrics", security((), ("key" = [])), responses(
    (status = 200, content_type = "text/plain", body = String), (status = 401, body = ErrorBody)
))]
async fn metrics(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let text = app
        .metrics
        .text()
        .map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", error.to_string()))?;
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}

/// This document.
async fn openapi() -> Json<utoipa::openapi::OpenApi> {
    Json(Document::openapi())
}

/// What the server takes and gives, for whoever writes or tests a client.
#[derive(OpenApi)]
#[openapi(
    info(title = "latten-server", description = "latten's models over HTTP, in the form of OpenAI's interface"),
    paths(
        health, models, metrics, generation::chat, generation::complete, words::tokenize, words::detokenize
    ),
    components(schemas(ErrorBody, ErrorDetail, answers::ChatChunk)),
    modifiers(&Key)
)]
struct Document;

/// The key that clients send, where the server has one.
struct Key;

impl utoipa::Modify for Key {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        document.components.get_or_insert_with(Default::default).add_security_scheme("key", scheme);
    }
}
