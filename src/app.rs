//! `run` and `check`: the wiring of all rooms, from the configuration to the end.

mod asking;
mod setup;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::check::{Finding, Level, Stops, Subject, of_source, preflight};
use crate::config::{Ack, ClientAuth, Config, Listen, OnFlush, OnSourceLoss};
use crate::init::{self, Plan, Project};
use crate::journal::{self, Journal};
use crate::migrate::state::{self, DataDir, State};
use crate::migrate::{Controller, Parts};
use crate::net::Endpoint;
use crate::net::tls::TlsAcceptor;
use crate::proxy::access::{Access, Users};
use crate::proxy::identity::Servers;
use crate::proxy::{self, Listener, Names, Proxy, Shared};
use crate::rehearse::{self, SCRATCH_TABLE};
use crate::sink::RedisStore;
use crate::status::{Authority, Restored};
use crate::tee::delivery::{Counters, Delivery, Stores};
use crate::tee::{Rescue, Restore, Rows, Shield, SinkName, Tee};
use asking::{ask_stores, asks_password, keep_asking_for_password};
use setup::{Setup, rows_in, setup};

/// Threads of the control runtime: delivery, backfill, verify, admin.
const CONTROL_THREADS: usize = 2;
/// How much those threads step back behind the workers.
const CONTROL_NICE: i32 = 5;
/// At the end, clients may take this long to become idle, and the tee this long to become empty.
const DRAIN_GRACE: Duration = Duration::from_secs(5);
/// Descriptors that the proxy needs besides its clients'.
const SPARE_FILES: u64 = 256;
/// How often the journal is looked after.
const TEND_EVERY: Duration = Duration::from_millis(500);

/// `sessionferry check`: what was found, the worst of it deciding the exit code.
///
/// # Errors
/// The configuration cannot be used.
pub fn check(config: &Config, deep: bool) -> Result<Vec<Finding>, String> {
    let setup = setup(config)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start: {error}"))?;
    let (source, target) = (
        RedisStore::new(setup.source.clone()),
        RedisStore::new(setup.target.clone()),
    );
    let subject = Subject {
        source: &source,
        target: &target,
        before_cutover: true,
        rows: setup.rows.as_deref(),
        patterns: &setup.patterns,
        deep: deep.then(|| state::digest_key(&config.data_dir).unwrap_or_else(rand::random)),
    };
    Ok(runtime.block_on(preflight(&subject)))
}

/// `sessionferry rehearse`: copies up to `limit` sessions (`None`: all), and removes the copies; what was found.
///
/// # Errors
/// The configuration cannot be used, or a proxy runs with it.
pub fn rehearse(config: &Config, limit: Option<usize>) -> Result<Vec<Finding>, String> {
    if state::is_in_use(&config.data_dir) {
        return Err(format!(
            "a proxy runs with {}: what it writes to the target could not be told from what is rehearsed; stop it, or wait until the move is over",
            config.data_dir.display()
        ));
    }
    let setup = setup(config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start: {error}"))?;
    let _on_it = runtime.enter();
    let (source, target) = (
        RedisStore::new(setup.source.clone()),
        RedisStore::new(setup.target.clone()),
    );
    let scratch = |table: &str| match table.rsplit_once('.') {
        Some((schema, _)) => format!("{schema}.{SCRATCH_TABLE}"),
        None => SCRATCH_TABLE.to_owned(),
    };
    let sites = config
        .sites
        .iter()
        .filter_map(|site| rows_in(site, &scratch(&site.database.table)).transpose());
    let rows = Rows::new(sites.collect::<Result<_, String>>()?);
    let with_rows = config.sites.iter().filter(|site| site.database.url.is_some());
    let likes: Vec<String> = with_rows.map(|site| site.database.table.clone()).collect();
    let subject = rehearse::Subject {
        source: &source,
        target: &target,
        patterns: &setup.patterns,
        rows: rows.as_deref().map(|rows| (rows, likes)),
        limit,
        data_dir: &config.data_dir,
    };
    let stop = CancellationToken::new();
    let asked = stop.clone();
    Ok(runtime.block_on(async move {
        tokio::spawn(async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                asked.cancel();
            }
        });
        rehearse::rehearse(&subject, &stop).await
    }))
}

/// `sessionferry init`: asks the project, and the old Redis, where it can be reached.
///
/// # Errors
/// The project cannot be asked, or its sessions cannot be moved.
pub fn init(project: &Project, target: Option<&str>, listen: &str, secrets: &Path) -> Result<Plan, String> {
    let probe = project.ask().map_err(|error| error.to_string())?;
    let mut plan = init::plan(&probe, target, listen, secrets).map_err(|error| error.to_string())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start: {error}"))?;
    if let Ok(endpoint) = Endpoint::parse(plan.source.expose()) {
        let found = runtime.block_on(of_source(&RedisStore::new(endpoint)));
        let bad = found.into_iter().filter(|finding| finding.level != Level::Green);
        plan.warnings
            .extend(bad.map(|finding| format!("{}: {}", finding.about, finding.detail)));
    }
    Ok(plan)
}

/// `sessionferry restore --to`: puts the rows into the Redis that `config` has as the source, and says what became of them.
///
/// # Errors
/// The configuration cannot be used, a store cannot be reached, or the rows cannot be read to their end.
pub fn restore(config: &Config) -> Result<Restored, String> {
    let setup = setup(config)?;
    if setup.rows.is_none() {
        return Err("there are no rows to put back: give the database (--database) and the site's SECRET_KEY".into());
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start: {error}"))?;
    runtime.block_on(async {
        let tee = Arc::new(Tee::new(setup.patterns, 1, false, rand::random()));
        // There is no other Redis.
        tee.redis.disable();
        let to = RedisStore::new(setup.source);
        let stores = Stores::new(to.clone(), to, Authority::Source);
        let restore = Restore::new(tee, stores, setup.rows);
        let (restored, ended) = restore.put_rows_back(|_| true).await?;
        ended.map(|()| restored)
    })
}

/// `sessionferry run`: serves until SIGTERM or SIGINT.
///
/// # Errors
/// Why it cannot start, with what to do next.
pub fn run(config: &Config) -> Result<(), String> {
    for line in config.effective() {
        tracing::info!("{line}");
    }
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let control = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("control")
        // Where the cores are short, replies come first. A lower priority is always granted.
        .on_thread_start(|| {
            let _ = rustix::process::nice(CONTROL_NICE);
        })
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start: {error}"))?;
    let result = control.block_on(serve(config));
    // Nothing that still runs here is waited for: what matters has been joined.
    control.shutdown_timeout(Duration::from_secs(1));
    result
}

async fn serve(config: &Config) -> Result<(), String> {
    keep_memory_private();
    raise_file_limit(config.client.max);
    let setup = setup(config)?;
    let (data_dir, mut state) = DataDir::open(&config.data_dir, setup.source.to_string(), setup.target.to_string())
        .map_err(|e| e.to_string())?;
    let mut warnings = same_move(&setup, &data_dir, &mut state)?;
    let stores = Stores::new(
        RedisStore::new(setup.source.clone()),
        RedisStore::new(setup.target.clone()),
        state.authority,
    );
    // Bound first: clients that come while the stores are looked at wait in the backlog, rather than being refused.
    let listen = match &config.listen {
        Listen::Tcp(address) => proxy::Listen::Tcp(address.clone()),
        Listen::Unix(path) => proxy::Listen::Unix(path.clone()),
    };
    let listener = Listener::bind(&listen).await.map_err(|error| {
        format!(
            "cannot listen on {}: {error}; is another process there?",
            listen_text(&listen)
        )
    })?;
    let admin = TcpListener::bind(&config.admin.listen).await.map_err(|error| {
        format!(
            "cannot listen on {} (admin): {error}; is another process there?",
            config.admin.listen
        )
    })?;
    warnings.extend(ask_before_start(&setup, &stores, data_dir.fresh).await?);
    let sites = setup.rows.iter().flat_map(|rows| rows.sites());
    for site in sites.filter(|site| site.may_be_made) {
        if site.database.inspect().await.is_ok_and(|report| !report.exists) {
            let made = site.database.create_table().await;
            made.map_err(|error| format!("cannot make the table: {error}"))?;
        }
    }
    match data_dir.save(&state) {
        Ok(()) => {}
        Err(error) if data_dir.fresh => return Err(error.to_string()),
        // A full disk must not keep a site down: what an earlier run saved says which Redis is the authority.
        Err(error) => tracing::error!(%error, "the move's state is not saved; it goes on with what was saved before"),
    }

    // What an earlier run had not delivered comes first.
    let recovered = journal::recover(&data_dir.journal()).map_err(|error| error.to_string())?;
    let journal = Arc::new(Journal::open(&data_dir.journal(), &recovered).map_err(|error| error.to_string())?);
    // Rows that are Django's own need not be written, read or put back: its engine does that by itself.
    let own_rows = setup.rows.as_ref().and_then(|rows| rows.written());
    let tee = Arc::new(Tee::new(
        setup.patterns.clone(),
        recovered.last_seq + 1,
        own_rows.is_some(),
        state.digest_key,
    ));
    if state.phase == crate::status::Phase::Finished {
        tee.redis.disable();
    }
    replay(&tee, &recovered);
    drop(recovered);

    let access = match config.client.auth {
        ClientAuth::Same => Access::Same,
        ClientAuth::Users => {
            let users = config.client.users.iter();
            Access::Users(Users::new(users.map(|(name, secret)| (name.as_str(), secret.expose()))))
        }
        ClientAuth::None => Access::Open,
    };
    let tls = match (&config.client.tls_cert, &config.client.tls_key) {
        (Some(cert), Some(key)) => Some(TlsAcceptor::new(cert, key).map_err(|error| format!("client: TLS: {error}"))?),
        _ => None,
    };
    let rescue = Arc::new(Rescue::new(tee.clone(), stores.clone(), own_rows.clone()));
    let restore = Arc::new(Restore::new(tee.clone(), stores.clone(), own_rows.clone()));
    let shared = Arc::new(Shared {
        tee: tee.clone(),
        names: Names::new(setup.aliases),
        rescue: Some(rescue.clone()),
        restore: Some(restore.clone()),
        journal: journal.clone(),
        servers: Servers {
            source: setup.source.clone(),
            target: setup.target.clone(),
            by_url: config.client.auth != ClientAuth::Same,
        },
        sessions_db: setup.source.db,
        journaled: config.tee.ack != Ack::Source,
        acks: match config.tee.ack {
            Ack::Source | Ack::Journal => Vec::new(),
            Ack::Target => vec![SinkName::Redis],
            Ack::All => vec![SinkName::Redis, SinkName::Database],
        },
        workers: config.workers,
        max_clients: config.client.max,
        on_flush: match config.tee.on_flush {
            OnFlush::Mirror => proxy::OnFlush::Mirror,
            OnFlush::Shield => proxy::OnFlush::Shield(Arc::new(Shield::new(stores.clone(), setup.patterns.clone()))),
            OnFlush::Refuse => proxy::OnFlush::Refuse,
        },
        scripts: proxy::Scripts::default(),
        pause: proxy::Pause::default(),
        // One that is away is taken to ask: a password in its URL is there for a reason.
        rights: proxy::Rights::new(
            asks_password(&setup.source)
                .await
                .unwrap_or(setup.source.password.is_some()),
        ),
        access,
        tls,
    });
    let proxy = Arc::new(
        Proxy::start(shared.clone(), state.authority).map_err(|error| format!("cannot start workers: {error}"))?,
    );

    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();
    let counters = Arc::new(Counters::default());
    let delivery = || Delivery {
        tee: tee.clone(),
        stores: stores.clone(),
        counters: counters.clone(),
        restore: restore.clone(),
        acks: shared.acks.clone(),
    };
    tasks.spawn(delivery().run_redis(stop.clone()));
    if let Some(rows) = &own_rows {
        tasks.spawn(delivery().run_database(rows.clone(), stop.clone()));
    }
    let reachable = Arc::new(AtomicBool::new(false));
    let controller = Controller::new(
        Parts {
            tee: tee.clone(),
            stores: stores.clone(),
            proxy: proxy.clone(),
            journal: journal.clone(),
            counters: counters.clone(),
            rescue,
            restore,
            rows: setup.rows.clone(),
            data_dir,
            max_hold: config.cutover.max_hold,
            reachable: reachable.clone(),
            warnings,
        },
        state,
    );
    // These have nothing to finish: they end with the runtime.
    tokio::spawn(ask_stores(
        proxy.clone(),
        stores.clone(),
        tee.clone(),
        setup.rows.clone(),
        reachable,
    ));
    tokio::spawn(keep_asking_for_password(shared.clone(), setup.source.clone()));
    tokio::spawn({
        let controller = controller.clone();
        async move { controller.keep_census().await }
    });
    tokio::spawn(controller.clone().watch_bypassing_writes());
    tokio::spawn(controller.clone().watch_authority());
    tokio::spawn(controller.clone().watch_other_redis());
    if config.cutover.on_source_loss == OnSourceLoss::Promote {
        tokio::spawn(controller.clone().promote_on_loss());
    }
    tokio::spawn({
        let controller = controller.clone();
        async move { controller.follow_wipes().await }
    });
    tokio::spawn({
        let controller = controller.clone();
        async move {
            loop {
                tokio::time::sleep(TEND_EVERY).await;
                controller.tend();
            }
        }
    });
    let admin_address = admin
        .local_addr()
        .map(|address| address.to_string())
        .unwrap_or_default();
    let admin_stop = stop.child_token();
    let admin_task = tokio::spawn(crate::admin::serve(
        admin,
        controller.clone(),
        config.admin.token.clone(),
        admin_stop.clone(),
    ));
    tracing::info!(
        listen = listener.address(), admin = admin_address, workers = config.workers, authority = %stores.authority(),
        "ready for Django"
    );
    tokio::spawn(proxy.clone().balance());
    let accepting = tokio::spawn(listener.run(proxy.clone()));

    until_told_to_end().await?;
    tracing::info!("ending: clients are let go as they become idle");
    accepting.abort();
    let _ = accepting.await;
    proxy.drain(DRAIN_GRACE).await;
    let _hurry = counters.hurry();
    flush_tee(&tee).await;
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    let _ = admin_task.await;
    proxy.stop();
    controller.finish_journal();
    if tee.is_drained() {
        journal.retire(u64::MAX);
    }
    tracing::info!(
        pending_target = tee.redis.len(),
        pending_database = tee.database.len(),
        "ended"
    );
    if let Listen::Unix(path) = &config.listen {
        let _ = std::fs::remove_file(path);
    }
    Ok(())
}

/// Sessions and passwords are in memory: no core dump of it, and no other process of this user may read it.
fn keep_memory_private() {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let dumps = setrlimit(Resource::Core, none);
    if let Err(error) = dumps.and_then(|()| set_dumpable_behavior(DumpableBehavior::NotDumpable)) {
        tracing::warn!(%error, "core dumps of this process are not ruled out; they would hold sessions");
    }
}

/// Each client takes a descriptor, and the proxy some for itself.
fn raise_file_limit(max_clients: usize) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let needed = max_clients as u64 + SPARE_FILES;
    // At the worst each client has an upstream connection of its own.
    let wanted = needed + max_clients as u64;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return;
    }
    let raised = limit.maximum.map_or(wanted, |maximum| wanted.min(maximum));
    let set = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: Some(raised),
            maximum: limit.maximum,
        },
    );
    let now = getrlimit(Resource::Nofile).current.unwrap_or(wanted);
    if set.is_err() || now < needed {
        tracing::warn!(
            "only {now} open files are allowed, {max_clients} clients (client.max) need {needed}: raise the limit (ulimit -n, LimitNOFILE)"
        );
    }
}

fn listen_text(listen: &proxy::Listen) -> String {
    match listen {
        proxy::Listen::Tcp(address) => address.clone(),
        proxy::Listen::Unix(path) => format!("unix:{}", path.display()),
    }
}

/// Whether the data directory belongs to this pair of servers.
fn same_move(setup: &Setup, data_dir: &DataDir, state: &mut State) -> Result<Vec<String>, String> {
    let (source, target) = (setup.source.to_string(), setup.target.to_string());
    if data_dir.fresh || (state.source == source && state.target == target) {
        return Ok(Vec::new());
    }
    let told = format!(
        "the data directory belongs to a move from {} to {}, the configuration says from {source} to {target}",
        state.source, state.target
    );
    let moved = crate::status::Phase::CutOver;
    if state.source == target || state.target == source || matches!(state.phase, p if p == moved) {
        return Err(format!(
            "{told}; the {} is the authority there. Configure those servers again, or give this move a data_dir of its own",
            state.authority
        ));
    }
    state.begin_anew(source, target);
    Ok(vec![format!("{told}: run backfill and verify again")])
}

/// Before the first start everything must be right; later, what is away now may come back. Answers what an operator
/// should keep seeing.
async fn ask_before_start(setup: &Setup, stores: &Stores, fresh: bool) -> Result<Vec<String>, String> {
    let subject = Subject {
        source: &stores.source,
        target: &stores.target,
        before_cutover: fresh && stores.authority() == Authority::Source,
        rows: setup.rows.as_deref(),
        patterns: &setup.patterns,
        deep: None,
    };
    let findings = preflight(&subject).await;
    let (mut reasons, mut warnings) = (Vec::new(), Vec::new());
    for finding in &findings {
        let (about, detail) = (finding.about, &finding.detail);
        match finding.level {
            Level::Green => tracing::info!(about, "{detail}"),
            Level::Yellow => tracing::warn!(about, "{detail}"),
            Level::Red => {
                tracing::error!(about, "{detail}");
                let text = format!("{about}: {detail}");
                match finding.stops {
                    Stops::AnyStart => reasons.push(text),
                    Stops::FirstStart if fresh => reasons.push(text),
                    _ => warnings.push(format!("at start: {text}")),
                }
            }
        }
    }
    if reasons.is_empty() {
        return Ok(warnings);
    }
    Err(format!("not started, nothing was changed:\n  {}", reasons.join("\n  ")))
}

fn replay(tee: &Tee, recovered: &journal::Recovered) {
    for (key, (seq, _)) in &recovered.writes {
        // The recovered keys are slices of whole segments.
        tee.replay(&bytes::Bytes::copy_from_slice(key), *seq);
    }
    if let Some(seq) = recovered.wipe {
        tee.replay_wipe(seq);
    }
    if !recovered.writes.is_empty() || recovered.wipe.is_some() {
        let (sessions, torn) = (recovered.writes.len(), recovered.torn);
        tracing::info!(sessions, torn, "writes of an earlier run are looked at again");
    }
}

async fn until_told_to_end() -> Result<(), String> {
    let listen = |kind| signal(kind).map_err(|error| format!("cannot listen for signals: {error}"));
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// What is pending goes out while there is time; the rest is in the journal.
async fn flush_tee(tee: &Tee) {
    let end = std::time::Instant::now() + DRAIN_GRACE;
    let waits = |sink: &&crate::tee::Pending| !sink.is_empty() && sink.connected.load(Relaxed);
    while tee.sinks().iter().any(waits) && std::time::Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
