use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::TcpListener;
use std::time::Duration;

use futures_util::stream::{self, Stream, StreamExt as _};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Collected, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, sleep, sleep_until};

use super::store::Gone;
use super::{Api, Tick};

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// How often a watch without news says where it is.
const BOOKMARK: Duration = Duration::from_secs(1);

/// Serves each listener until the process ends.
pub fn run(api: &Api, mut listeners: UnboundedReceiver<TcpListener>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        while let Some(listener) = listeners.recv().await {
            let listener = net::TcpListener::from_std(listener).expect("a listener");
            tokio::spawn(accept(api.clone(), listener));
        }
    });
}

async fn accept(api: Api, listener: net::TcpListener) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        if api.store().down {
            continue;
        }
        let api = api.clone();
        tokio::spawn(async move {
            let answer = service_fn(|request| {
                let api = api.clone();
                async move { Ok::<_, Infallible>(answer(&api, request).await) }
            });
            let epoch = api.tick.borrow().epoch;
            let mut ticks = api.tick.subscribe();
            let is_cut = ticks.wait_for(|tick| tick.epoch != epoch);
            tokio::select! {
                _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer) => {}
                _ = is_cut => {}
            }
        });
    }
}

async fn answer(api: &Api, request: Request<Incoming>) -> Response<Body> {
    if let Some(refusal) = unauthorized(api, &request) {
        return refusal;
    }
    let path = request.uri().path().to_owned();
    let query = query(request.uri().query().unwrap_or_default());
    match (request.method(), path.as_str()) {
        (&Method::GET, "/api/v1/nodes") if query.contains_key("watch") => watch(api, &query),
        (&Method::GET, "/api/v1/nodes") => list(api, &query).await,
        (&Method::GET, "/api/v1/namespaces/kube-flannel/configmaps/kube-flannel-cfg") => {
            let mut store = api.store();
            store.asked.config_maps += 1;
            ok(&json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "kube-flannel-cfg"},
                "data": {"net-conf.json": store.net_conf}}))
        }
        (&Method::PATCH, path) => {
            match path.strip_prefix("/api/v1/nodes/").and_then(|rest| rest.strip_suffix("/status")) {
                Some(name) => patch(api, name, request).await,
                None => refuse(StatusCode::FORBIDDEN, "only the status of nodes may be patched"),
            }
        }
        _ => refuse(StatusCode::NOT_FOUND, "nothing is there"),
    }
}

fn unauthorized(api: &Api, request: &Request<Incoming>) -> Option<Response<Body>> {
    let mut store = api.store();
    let token = store.token.clone()?;
    if request
        .headers()
        .get(AUTHORIZATION)
        .is_some_and(|value| value.as_bytes() == format!("Bearer {token}").as_bytes())
    {
        return None;
    }
    store.asked.unauthorized += 1;
    Some(refuse(StatusCode::UNAUTHORIZED, "Unauthorized"))
}

/// The pairs of a query. No value of ours needs decoding but the colon of a token.
fn query(text: &str) -> HashMap<String, String> {
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (key.to_owned(), value.replace("%3A", ":"))).collect()
}

/// A refusal that the test has ordered.
fn ordered(api: &Api) -> Option<Response<Body>> {
    let mut store = api.store();
    if store.refusals.is_empty() {
        return None;
    }
    let (code, retry_after) = store.refusals.remove(0);
    let mut refusal = refuse(StatusCode::from_u16(code).expect("a code"), "as the test has ordered");
    if let Some(secs) = retry_after {
        refusal.headers_mut().insert(RETRY_AFTER, secs.into());
    }
    Some(refusal)
}

async fn list(api: &Api, query: &HashMap<String, String>) -> Response<Body> {
    let delay = {
        let mut store = api.store();
        store.asked.pages += 1;
        store.listed_at.get_or_insert_with(std::time::Instant::now);
        store.delay
    };
    sleep(delay).await;
    if let Some(refusal) = ordered(api) {
        return refusal;
    }
    let limit = query.get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(usize::MAX);
    let page = api.store().page(limit, query.get("continue").map(String::as_str));
    page.map_or_else(|Gone| refuse(StatusCode::GONE, "the continue parameter is too old"), |page| ok(&page))
}

async fn patch(api: &Api, name: &str, request: Request<Incoming>) -> Response<Body> {
    let kind = request.headers().get(CONTENT_TYPE).cloned();
    let body = request.into_body().collect().await.map(Collected::to_bytes).unwrap_or_default();
    let ordered = {
        let mut store = api.store();
        store.asked.patches += 1;
        (!store.patch_refusals.is_empty()).then(|| store.patch_refusals.remove(0))
    };
    if let Some(code) = ordered {
        return refuse(StatusCode::from_u16(code).expect("a code"), "as the test has ordered");
    }
    if kind.is_none_or(|kind| kind != "application/strategic-merge-patch+json") {
        return refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not a strategic merge patch");
    }
    let Ok(patch) = serde_json::from_slice::<Value>(&body) else { return refuse(StatusCode::BAD_REQUEST, "not JSON") };
    match api.change(|store| store.patch_status(name, &patch)) {
        Some(node) => ok(&node),
        None => refuse(StatusCode::NOT_FOUND, "no such node"),
    }
}

fn watch(api: &Api, query: &HashMap<String, String>) -> Response<Body> {
    if let Some(refusal) = ordered(api) {
        return refusal;
    }
    let version = query.get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or_default();
    {
        let mut store = api.store();
        store.asked.watches += 1;
        if store.gone_by_status && store.after(version) == Err(Gone) {
            return refuse(StatusCode::GONE, "too old resource version");
        }
    }
    let secs = query.get("timeoutSeconds").and_then(|secs| secs.parse().ok()).unwrap_or(300);
    let watch = Watch {
        api: api.clone(),
        version,
        bookmarks: query.get("allowWatchBookmarks").is_some_and(|value| value == "true"),
        until: Instant::now() + Duration::from_secs(secs),
        ended: false,
    };
    Response::new(BodyExt::boxed_unsync(StreamBody::new(watch.events())))
}

/// One client's watch.
struct Watch {
    api: Api,
    version: u64,
    bookmarks: bool,
    until: Instant,
    ended: bool,
}

impl Watch {
    fn events(self) -> impl Stream<Item = io::Result<Frame<Bytes>>> {
        stream::unfold(self, |mut watch| async move {
            let event = watch.next().await?;
            let mut line = event.to_string() + "\n";
            let is_cut = std::mem::take(&mut watch.api.store().cut_next_event);
            if is_cut {
                line.truncate(line.len() / 2);
                watch.ended = true;
            }
            Some((Ok(Frame::data(Bytes::from(line))), watch))
        })
        .boxed()
    }

    /// The next event, or none when the watch ends.
    async fn next(&mut self) -> Option<Value> {
        if self.ended {
            return None;
        }
        let mut ticks = self.api.tick.subscribe();
        loop {
            let Tick { version, .. } = *ticks.borrow_and_update();
            let found = self.api.store().after(self.version);
            match found {
                Err(Gone) => {
                    self.ended = true;
                    return Some(
                        json!({"type": "ERROR", "object": status(StatusCode::GONE, "too old resource version")}),
                    );
                }
                Ok(Some((version, event))) => {
                    self.version = version;
                    return Some(event);
                }
                Ok(None) => self.version = self.version.max(version),
            }
            let bookmark = Instant::now() + BOOKMARK;
            tokio::select! {
                changed = ticks.changed() => changed.ok()?,
                () = sleep_until(bookmark), if self.bookmarks => {
                    let metadata = json!({"resourceVersion": self.version.to_string()});
                    let node = json!({"kind": "Node", "apiVersion": "v1", "metadata": metadata});
                    return Some(json!({"type": "BOOKMARK", "object": node}));
                }
                () = sleep_until(self.until) => return None,
            }
        }
    }
}

fn ok(value: &Value) -> Response<Body> {
    respond(StatusCode::OK, value)
}

fn status(code: StatusCode, message: &str) -> Value {
    let reason = code.canonical_reason().unwrap_or_default().replace(' ', "");
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
        "reason": reason, "code": code.as_u16()})
}

fn refuse(code: StatusCode, message: &str) -> Response<Body> {
    respond(code, &status(code, message))
}

fn respond(code: StatusCode, value: &Value) -> Response<Body> {
    let body = Full::new(Bytes::from(value.to_string())).map_err(|never| match never {});
    let mut response = Response::new(BodyExt::boxed_unsync(body));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
    response
}
