//! A tunnel that runs, under change: reloads, applied files, single peers.
//!
//! Whatever is wanted becomes a whole configuration first, which is validated as a file is; then the difference to the
//! one that runs is carried out. What the kernel may refuse comes first and is undone where something fails, so that a
//! change happens whole or not at all. Sessions of peers that the difference does not name go on undisturbed.

use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::RunError;
use super::leave::About;
use super::network::{Made, Network};
use super::plan::{NeedsRestart, Plan};
use super::upgrade::{self, Granted};
use super::{End, PROGRAM, service};
use crate::config::edit::EditError;
use crate::config::save::{self, SaveError};
use crate::config::{self, Config, HostPort, LoadError, Loaded, Located};
use crate::control::api::{ChangeReport, ErrorCode, Request, Response};
use crate::control::changes::{ChangeError, Changes};
use crate::control::server::{Asked, refusal};
use crate::control::signals::Hangups;
use crate::control::{Order, runtime};
use crate::firewall::{self, gateway};
use crate::link::LinkError;

/// The longest time that a change may wait for its confirmation.
const CONFIRM_TIME_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// How often a program is asked again whether it could go on, because what runs has changed while it was asked.
const EXAMINATIONS_MAX: u32 = 5;

/// Between attempts to undo what nobody has confirmed.
const ROLL_BACK_PAUSE: Duration = Duration::from_secs(10);

/// A tunnel under change.
pub(super) struct Live<'a> {
    running: Config,
    /// Where the configuration came from, and is saved to.
    file: PathBuf,
    network: Network,
    rules: &'a gateway::Running,
    orders: mpsc::Sender<Order>,
    asked: mpsc::Receiver<Asked>,
    pending: Option<Pending>,
    examination: Option<Examination>,
    /// The turn to write the file.
    saving: Arc<tokio::sync::Mutex<()>>,
}

/// A program that is being asked whether it could go on.
struct Examination {
    /// With what ran when it was asked.
    of: Config,
    /// How often it has been asked.
    times: u32,
    /// When it has to have answered for the last time.
    deadline: Instant,
    end: Pin<Box<dyn Future<Output = Option<Granted>>>>,
}

/// A change that is undone unless somebody confirms it.
struct Pending {
    before: Config,
    deadline: Instant,
}

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Edit(#[from] EditError),
    #[error(transparent)]
    Restart(#[from] NeedsRestart),
    #[error("{}: this file is for the interface \"{theirs}\", and this is \"{ours}\"; write name = \"{ours}\"", file.display())]
    OtherInterface {
        file: PathBuf,
        theirs: String,
        ours: String,
    },
    #[error("a change waits {seconds} s more for its confirmation; run: ringway confirm {interface}")]
    Unconfirmed { seconds: u64, interface: String },
    #[error("no change waits for a confirmation; it may have been undone already")]
    NothingToConfirm,
    #[error("a change waits 1 s to {} s for its confirmation", CONFIRM_TIME_MAX.as_secs())]
    ConfirmTime,
    #[error("{}: write an absolute path, the daemon does not know where you are", .0.display())]
    RelativePath(PathBuf),
    #[error(transparent)]
    Save(#[from] SaveError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Network(#[from] RunError),
    #[error(
        "{0} cannot change to that while the tunnel runs: the sandbox keeps from the daemon what it did not need when it came \
             up; nothing was changed; restart the tunnel, or run it with sandbox = false"
    )]
    Confined(&'static str),
    #[error(transparent)]
    Change(#[from] ChangeError),
    #[error("another upgrade is under way")]
    Upgrading,
    #[error("what runs changes all the time; try again when it does not")]
    Restless,
    #[error("commands of post_up still run; try again when they have ended")]
    Beginning,
    #[error("the tunnel is going down")]
    Ending,
    #[error("the system refused something basic: {0}")]
    Io(#[from] io::Error),
}

impl Refused {
    fn code(&self) -> ErrorCode {
        match self {
            Refused::Load(_) | Refused::Edit(EditError::Invalid(_)) | Refused::OtherInterface { .. } => {
                ErrorCode::InvalidConfig
            }
            Refused::Edit(EditError::NoSuchPeer(_)) => ErrorCode::NotFound,
            Refused::Restart(_) | Refused::Confined(_) => ErrorCode::NeedsRestart,
            Refused::Unconfirmed { .. }
            | Refused::NothingToConfirm
            | Refused::Beginning
            | Refused::Upgrading
            | Refused::Restless => ErrorCode::Conflict,
            Refused::ConfirmTime | Refused::RelativePath(_) => ErrorCode::BadRequest,
            Refused::Ending => ErrorCode::Unavailable,
            Refused::Save(_) | Refused::Link(_) | Refused::Network(_) | Refused::Change(_) | Refused::Io(_) => {
                ErrorCode::Failed
            }
        }
    }
}

impl<'a> Live<'a> {
    /// Takes over a tunnel that runs `running`, read from `file`.
    pub(super) fn new(
        running: Config,
        file: PathBuf,
        network: Network,
        rules: &'a gateway::Running,
        orders: mpsc::Sender<Order>,
        asked: mpsc::Receiver<Asked>,
    ) -> Live<'a> {
        Live {
            running,
            file,
            network,
            rules,
            orders,
            asked,
            pending: None,
            examination: None,
            saving: Arc::default(),
        }
    }

    /// Answers requests and signals until one asks for the end, or for another process to go on. `begun`: the commands of the
    /// start have ended.
    pub(super) async fn serve(&mut self, hangups: &mut Hangups, begun: &Cell<bool>) -> End {
        loop {
            let deadline = self.pending.as_ref().map(|pending| pending.deadline);
            let expiry = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            let examination = self.examination.as_mut();
            let examined = async {
                match examination {
                    Some(examination) => (&mut examination.end).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                granted = examined => {
                    let examination = self.examination.take();
                    let (Some(granted), Some(examination)) = (granted, examination) else {
                        // It was told why.
                        continue;
                    };
                    if let Some(granted) = self.grant(granted, &examination).await {
                        return End::Upgrade(granted);
                    }
                }
                Some(asked) = self.asked.recv() => {
                    if let Request::Upgrade { .. } = asked.request {
                        match self.may_upgrade(begun.get()) {
                            Ok(()) => self.examine(asked, 1, upgrade::deadline()).await,
                            Err(error) => refuse(asked, &error),
                        }
                        continue;
                    }
                    let Asked { request, reply, .. } = asked;
                    let is_end = matches!(request, Request::Stop {});
                    let response = match is_end {
                        true => Response::Changed(ChangeReport {
                            changes: vec!["down".into()],
                            ..ChangeReport::default()
                        }),
                        false => self.answer(request).await,
                    };
                    // A client that hung up loses its own answer only.
                    let _ = reply.send(response);
                    if is_end {
                        return End::Down;
                    }
                }
                () = hangups.next() => match self.reload().await {
                    Ok(report) => tracing::info!(changes = report.changes.len(), "reloaded: {}", report.changes.join("; ")),
                    Err(error) => tracing::error!("not reloaded: {error}"),
                },
                () = expiry => self.roll_back().await,
            }
        }
    }

    /// Whether another program may be asked to go on with the tunnel. `begun`: the commands of the start have ended.
    fn may_upgrade(&self, begun: bool) -> Result<(), Refused> {
        self.refuse_while_unconfirmed()?;
        if !begun {
            return Err(Refused::Beginning);
        }
        if self.examination.is_some() {
            return Err(Refused::Upgrading);
        }
        Ok(())
    }

    /// Begins to ask a program, for the `times`th time since it had until the `deadline`.
    async fn examine(&mut self, asked: Asked, times: u32, deadline: Instant) {
        let about = self.about().await;
        let orders = self.orders.clone();
        let rehearsal = async move { about.rehearsal(&orders).await };
        self.examination = Some(Examination {
            of: self.running.clone(),
            times,
            deadline,
            end: Box::pin(upgrade::examine(PROGRAM, asked, rehearsal, deadline)),
        });
    }

    /// A program could go on with what ran when it was asked: whether it may, or is asked again, because that has changed.
    async fn grant(&mut self, granted: Granted, examination: &Examination) -> Option<Granted> {
        let refused = match self.refuse_while_unconfirmed() {
            Err(error) => error,
            Ok(()) if examination.of == self.running => return Some(granted),
            Ok(()) if examination.times < EXAMINATIONS_MAX && Instant::now() < examination.deadline => {
                let (times, deadline) = (examination.times + 1, examination.deadline);
                self.examine(granted.ask_again(), times, deadline).await;
                return None;
            }
            Ok(()) => Refused::Restless,
        };
        refuse(granted.ask_again(), &refused);
        None
    }

    /// What the tunnel is, beside what the control thread knows of it.
    pub(super) async fn about(&self) -> About {
        About {
            file: self.file.clone(),
            config: self.running.clone(),
            network: self.network.state(),
            gateway: self.rules.handed_over().await,
            ifindex: self.network.index(),
        }
    }

    /// The tunnel's place in the system, and the configuration that ran last.
    pub(super) fn end(self) -> (Network, Config) {
        (self.network, self.running)
    }

    async fn answer(&mut self, request: Request) -> Response {
        let result = match request {
            Request::Reload {} => self.reload().await,
            Request::Apply { path, confirm_s } => self.apply(&path, confirm_s).await,
            Request::Confirm {} => self.confirm(),
            Request::Save {} => self.save().await,
            Request::PeerAdd { public_key, set } => self.edit(|config| config.with_peer(public_key, &set)).await,
            Request::PeerSet { peer, set } => self.edit(|config| config.with_changed_peer(&peer, &set)).await,
            Request::PeerRemove { peer } => self.edit(|config| config.without_peer(&peer)).await,
            Request::SetMtu { mtu } => self.edit(|config| config.with_mtu(&mtu)).await,
            _ => return refusal(ErrorCode::Internal, "this request changes nothing".into()),
        };
        match result {
            Ok(report) => {
                tracing::info!(changes = report.changes.len(), "changed: {}", report.changes.join("; "));
                Response::Changed(report)
            }
            Err(error) => refusal(error.code(), error.to_string()),
        }
    }

    /// Reads the file again and makes it what runs.
    async fn reload(&mut self) -> Result<ChangeReport, Refused> {
        self.refuse_while_unconfirmed()?;
        service::reloading();
        let result = self.change_to_file().await;
        // Also when nothing was changed.
        service::ready(&self.running.interface.name);
        result
    }

    async fn change_to_file(&mut self) -> Result<ChangeReport, Refused> {
        let (wanted, warnings) = load(self.file.clone()).await?;
        let changes = self.change(wanted).await?;
        Ok(ChangeReport {
            changes,
            warnings,
            confirm_within_s: None,
        })
    }

    /// Makes another file what runs, for good or until nobody confirms it.
    async fn apply(&mut self, path: &Path, confirm_s: Option<u64>) -> Result<ChangeReport, Refused> {
        self.refuse_while_unconfirmed()?;
        if !path.is_absolute() {
            return Err(Refused::RelativePath(path.to_owned()));
        }
        let confirm = confirm_s.map(Duration::from_secs);
        if confirm.is_some_and(|time| time.is_zero() || time > CONFIRM_TIME_MAX) {
            return Err(Refused::ConfirmTime);
        }
        let (wanted, warnings) = load(path.to_owned()).await?;
        let ours = &self.running.interface.name;
        if wanted.interface.name != *ours {
            return Err(Refused::OtherInterface {
                file: path.to_owned(),
                theirs: wanted.interface.name,
                ours: ours.clone(),
            });
        }
        let before = self.running.clone();
        let changes = self.change(wanted).await?;
        self.pending = confirm.map(|time| Pending {
            before,
            deadline: Instant::now() + time,
        });
        Ok(ChangeReport {
            changes,
            warnings,
            confirm_within_s: confirm_s,
        })
    }

    fn confirm(&mut self) -> Result<ChangeReport, Refused> {
        self.pending.take().ok_or(Refused::NothingToConfirm)?;
        Ok(ChangeReport {
            changes: vec!["confirmed".into()],
            ..ChangeReport::default()
        })
    }

    /// Nobody has confirmed the change in time.
    async fn roll_back(&mut self) {
        let Some(pending) = self.pending.take() else { return };
        match self.change(pending.before.clone()).await {
            Ok(_) => tracing::warn!("the change was not confirmed in time and has been undone"),
            Err(error) => {
                tracing::error!(
                    "the change was not confirmed in time and cannot be undone; next attempt in {} s: {error}",
                    ROLL_BACK_PAUSE.as_secs()
                );
                self.pending = Some(Pending {
                    deadline: Instant::now() + ROLL_BACK_PAUSE,
                    ..pending
                });
            }
        }
    }

    async fn edit(&mut self, edit: impl FnOnce(&Config) -> Result<Config, EditError>) -> Result<ChangeReport, Refused> {
        self.refuse_while_unconfirmed()?;
        let wanted = edit(&self.running)?;
        Ok(ChangeReport {
            changes: self.change(wanted).await?,
            ..ChangeReport::default()
        })
    }

    /// Writes what runs into the file that it came from.
    async fn save(&mut self) -> Result<ChangeReport, Refused> {
        self.refuse_while_unconfirmed()?;
        let (file, running, turn) = (self.file.clone(), self.running.clone(), self.saving.clone());
        let written = async {
            // One that nobody waits for any more may be writing yet.
            let turn = turn.lock_owned().await;
            runtime::blocking(move || {
                let _turn = turn;
                save::save(&file, &running)
            })
            .await
        };
        let changed = runtime::within_disk_time(written).await??;
        let changes = changed.then(|| format!("{} written", self.file.display()));
        Ok(ChangeReport {
            changes: changes.into_iter().collect(),
            ..ChangeReport::default()
        })
    }

    fn refuse_while_unconfirmed(&self) -> Result<(), Refused> {
        match &self.pending {
            None => Ok(()),
            Some(pending) => Err(Refused::Unconfirmed {
                seconds: (pending.deadline - Instant::now()).as_secs(),
                interface: self.running.interface.name.clone(),
            }),
        }
    }

    /// Makes `wanted` what runs, whole or not at all; what has changed.
    async fn change(&mut self, wanted: Config) -> Result<Vec<String>, Refused> {
        let mut plan = Plan::between(&self.running, &wanted)?;
        if plan.commands && self.network.confined.at_all {
            return Err(Refused::Confined("commands"));
        }
        if plan.dns && !self.network.may_set(&wanted.interface.dns).await {
            return Err(Refused::Confined("dns"));
        }
        let ways = if plan.routes || plan.mtu {
            let remotes = self.remotes(&wanted).await?;
            self.network.plan(&wanted, remotes).await?
        } else {
            self.network.ways().clone()
        };
        let before = self.network.ways();
        if self.running.interface.fwmark != wanted.interface.fwmark && before.has_policy() && ways.has_policy() {
            // Between other rules and another mark of the packets there would be a gap.
            return Err(NeedsRestart(vec!["fwmark"]).into());
        }
        let (mark_before, mark) = (before.mark(), ways.mark());
        let marked_first = mark != mark_before && ways.has_policy();
        if marked_first {
            // Before anything leads the tunnel's own packets into it.
            self.mark(mark).await?;
        } else if mark != mark_before {
            plan.protocol.fwmark = Some(mark);
        }
        let mut made = Made::default();
        // A peer that comes finds its rules, and nothing passes unjudged.
        let filtered = firewall::change(self.rules, &self.running, &wanted).await;
        let is_filtered = filtered.is_ok();
        let mut result = filtered.map_err(|error| RunError::from(error).into());
        if is_filtered {
            let both = (&self.running, &wanted);
            result = match self.network.prepare(&plan, both, &ways, &mut made).await {
                Ok(mtu) => {
                    plan.protocol.mtu = mtu;
                    self.change_protocol(std::mem::take(&mut plan.protocol)).await
                }
                Err(error) => Err(error.into()),
            };
        }
        if let Err(error) = result {
            self.network.undo(made).await;
            if is_filtered {
                firewall::undo(self.rules, &wanted, &self.running).await;
            }
            if marked_first && let Err(error) = self.mark(mark_before).await {
                tracing::warn!("{error}");
            }
            return Err(error);
        }
        self.network.finish(&plan, ways).await;
        let before = std::mem::replace(&mut self.running, wanted);
        firewall::changed(self.rules, &before, &self.running);
        Ok(plan.summary)
    }

    async fn mark(&mut self, mark: u32) -> Result<(), Refused> {
        let changes = Changes {
            fwmark: Some(mark),
            ..Changes::default()
        };
        Ok(self.order(|reply| Order::Change(changes, reply)).await??)
    }

    async fn change_protocol(&mut self, changes: Changes) -> Result<(), Refused> {
        let port_before = match changes.listen_port {
            Some(_) => Some(self.order(Order::Dump).await?.listen_port),
            None => None,
        };
        let result = self.order(|reply| Order::Change(changes, reply)).await?;
        if let (Err(ChangeError::Mark { .. }), Some(port)) = (&result, port_before) {
            // The port was changed before the mark was refused.
            let back = Changes {
                listen_port: Some(port),
                ..Changes::default()
            };
            if let Err(error) = self.order(|reply| Order::Change(back, reply)).await? {
                tracing::warn!("{error}");
            }
        }
        Ok(result?)
    }

    /// Where the peers are, as far as that is known.
    async fn remotes(&mut self, wanted: &Config) -> Result<Vec<IpAddr>, Refused> {
        let known = self.order(Order::Dump).await?;
        let known: HashMap<_, _> = known
            .peers
            .iter()
            .map(|peer| (peer.public_key, peer.endpoint))
            .collect();
        let remote = |peer: &config::Peer| {
            let configured = peer.endpoint.as_ref().and_then(HostPort::address);
            let remote = configured.or_else(|| known.get(&peer.public_key).copied().flatten());
            remote.map(|remote| remote.ip())
        };
        Ok(wanted.peers.iter().filter_map(remote).collect())
    }

    async fn order<T>(&self, order: impl FnOnce(oneshot::Sender<T>) -> Order) -> Result<T, Refused> {
        let (reply, answer) = oneshot::channel();
        self.orders.send(order(reply)).await.map_err(|_| Refused::Ending)?;
        answer.await.map_err(|_| Refused::Ending)
    }
}

fn refuse(asked: Asked, error: &Refused) {
    // A client that hung up loses its own answer only.
    let _ = asked.reply.send(refusal(error.code(), error.to_string()));
}

/// Reads and checks a file, off the control thread; the configuration, and what is unwise about it.
async fn load(path: PathBuf) -> Result<(Config, Vec<String>), Refused> {
    let at = path.clone();
    let loaded = runtime::blocking(move || config::load_to_run(&path));
    let Loaded { config, warnings, .. } = runtime::within_disk_time(loaded).await??;
    let located = Located {
        path: &at,
        problems: &warnings,
    };
    let lines = if warnings.is_empty() {
        String::new()
    } else {
        located.to_string()
    };
    Ok((config, lines.lines().map(str::to_owned).collect()))
}
