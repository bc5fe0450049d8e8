//! The floors: servers that do the least one can do with a body. The program runs itself as one of them.

use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::mpsc;
use std::thread;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// `relay floor [FILE]`: with a file, bodies are appended to it and synced before the answer.
pub(crate) const ROLE: &str = "floor";

pub(crate) fn main() {
    let disk = std::env::args()
        .nth(2)
        .map(|file| Disk::open(file.as_ref()));
    let disk = disk.transpose().expect("the file can be made");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(serve(disk)).expect("a free port");
}

async fn serve(disk: Option<Disk>) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    println!("{}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let disk = disk.clone();
        let service = service_fn(move |request| answer(request, disk.clone()));
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

async fn answer(
    request: Request<Incoming>,
    disk: Option<Disk>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let body = pieces(request.into_body()).await;
    if let Some(disk) = disk {
        disk.append(body).await;
    }
    let reply = Full::from(r#"{"success":true}"#);
    let mut reply = Response::new(reply);
    let json = "application/json".parse().expect("a header's value");
    reply.headers_mut().insert(CONTENT_TYPE, json);
    Ok(reply)
}

/// The body as it comes, without another copy.
async fn pieces(mut body: Incoming) -> Vec<Bytes> {
    let mut pieces = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        pieces.extend(frame.into_data());
    }
    pieces
}

/// Reaches the thread that writes.
#[derive(Clone, Debug)]
struct Disk {
    orders: mpsc::Sender<Order>,
}

struct Order {
    body: Vec<Bytes>,
    synced: oneshot::Sender<()>,
}

impl Disk {
    fn open(file: &Path) -> io::Result<Disk> {
        let file = File::create(file)?;
        let (orders, received) = mpsc::channel();
        thread::spawn(move || commit_groups(file, &received));
        Ok(Disk { orders })
    }

    /// Returns once the body is on stable storage.
    async fn append(&self, body: Vec<Bytes>) {
        let (synced, answer) = oneshot::channel();
        let sent = self.orders.send(Order { body, synced });
        sent.expect("the thread waits for orders");
        answer.await.expect("the thread answers every order");
    }
}

fn commit_groups(mut file: File, orders: &mpsc::Receiver<Order>) {
    let (mut group, mut waiting) = (Vec::new(), Vec::new());
    while let Ok(first) = orders.recv() {
        for order in std::iter::once(first).chain(orders.try_iter()) {
            order
                .body
                .iter()
                .for_each(|piece| group.extend_from_slice(piece));
            waiting.push(order.synced);
        }
        file.write_all(&group).expect("the disk takes it");
        file.sync_data().expect("the disk syncs");
        group.clear();
        for synced in waiting.drain(..) {
            // A client that went away needs no answer.
            let _ = synced.send(());
        }
    }
}
