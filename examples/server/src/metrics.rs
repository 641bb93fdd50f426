//! What the server counts and times, as Prometheus reads it.

use latten::cache::CacheStats;
use latten::model::Scheduler;
use prometheus::{
    Counter, Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry, Result,
    TextEncoder,
};

/// From a hundredth of a millisecond to minutes, by factors of about three.
const SECONDS: [f64; 16] = [1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 15.0, 60.0, 300.0];

/// All of it, under one registry.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    pub running: IntGauge,
    pub waiting: IntGauge,
    pub connections: IntGauge,
    pub ended: IntCounterVec,
    pub responses: IntCounterVec,
    pub prompt_tokens: IntCounter,
    pub generated_tokens: IntCounter,
    pub steps: IntCounter,
    pub step_seconds: Histogram,
    pub between_steps: Counter,
    pub first_token: Histogram,
    pub inter_token: Histogram,
    pub request_seconds: Histogram,
    pages: [IntGauge; 5],
    cache_bytes: IntGauge,
    /// Counters that the cache and the scheduler keep themselves.
    hits: IntCounter,
    misses: IntCounter,
    evictions: IntCounter,
    preemptions: IntCounter,
}

impl Metrics {
    /// Errors: none, as all names differ and are names.
    pub fn new() -> Result<Self> {
        let registry = Registry::new();
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone())).map(|()| gauge)
        };
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone())).map(|()| counter)
        };
        let seconds = |name: &str, help: &str| {
            let seconds = Counter::new(name, help)?;
            registry.register(Box::new(seconds.clone())).map(|()| seconds)
        };
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counters.clone())).map(|()| counters)
        };
        let histogram = |name: &str, help: &str| {
            let histogram = Histogram::with_opts(HistogramOpts::new(name, help).buckets(SECONDS.to_vec()))?;
            registry.register(Box::new(histogram.clone())).map(|()| histogram)
        };
        Ok(Metrics {
            running: gauge("latten_requests_running", "Requests with a part of the cache: the batch")?,
            waiting: gauge("latten_requests_waiting", "Requests that wait for a place")?,
            connections: gauge("latten_connections", "Connections that are open")?,
            ended: counters("latten_requests_total", "Requests that ended, by how they did", &["outcome"])?,
            responses: counters("latten_http_responses_total", "Answers by path and status", &["path", "status"])?,
            prompt_tokens: counter("latten_prompt_tokens_total", "Tokens of prompts")?,
            generated_tokens: counter("latten_generated_tokens_total", "Tokens made")?,
            steps: counter("latten_steps_total", "Steps of the model")?,
            step_seconds: histogram("latten_step_seconds", "Time of a step")?,
            between_steps: seconds(
                "latten_between_steps_seconds_total",
                "Time from a step to the next in which tokens are handed out and requests taken in",
            )?,
            first_token: histogram("latten_time_to_first_token_seconds", "From the request to its first token")?,
            inter_token: histogram("latten_inter_token_seconds", "From a token to the next of the same request")?,
            request_seconds: histogram("latten_request_seconds", "From the request to its end")?,
            pages: [
                gauge("latten_cache_pages", "Pages of the cache")?,
                gauge("latten_cache_pages_used", "Pages that requests hold")?,
                gauge("latten_cache_pages_shared", "Pages that several requests hold")?,
                gauge("latten_cache_pages_kept", "Pages that no request holds, kept for prompts that begin alike")?,
                gauge("latten_cache_pages_free", "Pages that hold nothing")?,
            ],
            cache_bytes: gauge("latten_cache_bytes", "Bytes of the pages that are used or kept")?,
            hits: counter("latten_cache_hits_total", "Pages of prompts that were there")?,
            misses: counter("latten_cache_misses_total", "Whole pages of prompts that were not there")?,
            evictions: counter("latten_cache_evictions_total", "Kept pages that were given up for others")?,
            preemptions: counter("latten_preemptions_total", "Times that a request gave up its part of the cache")?,
            registry,
        })
    }

    /// Takes down how full the scheduler and its cache are.
    pub fn observe(&self, scheduler: &Scheduler) {
        let whole = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.running.set(whole(scheduler.running()));
        self.waiting.set(whole(scheduler.waiting()));
        let CacheStats { total, used, shared, evictable, free, bytes, hits, misses, evictions, .. } =
            scheduler.session().stats();
        for (gauge, pages) in self.pages.iter().zip([total, used, shared, evictable, free]) {
            gauge.set(whole(pages));
        }
        self.cache_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        let kept = [
            (&self.hits, hits),
            (&self.misses, misses),
            (&self.evictions, evictions),
            (&self.preemptions, scheduler.preemptions()),
        ];
        for (counter, now) in kept {
            counter.inc_by(now.saturating_sub(counter.get()));
        }
    }

    /// In Prometheus's text form.
    ///
    /// Errors: none that this registry can have.
    pub fn text(&self) -> Result<String> {
        let mut bytes = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}
