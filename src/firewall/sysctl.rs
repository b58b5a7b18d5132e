//! Switches below /proc/sys/net: set, and put back as they were.
//!
//! What they were is written to a file before they are changed, so that a daemon that was killed does not leave its
//! changes to the next one as if they had always been there.

use std::fs::{self, File};
use std::io::{self, BufReader, Write as _};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::FirewallError;
use crate::config::files::{create_anew, with_suffix};
use crate::control::runtime::open_file;

/// Switches of this network namespace that were changed.
pub(super) struct Sysctls {
    /// /proc/sys, or a test's own.
    root: PathBuf,
    /// Where the changes are written down.
    state: PathBuf,
    /// In the order in which they were made.
    changes: Vec<Change>,
    /// Why it is not known what an earlier daemon has written down there.
    unread: Option<io::Error>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Change {
    /// Path below the root.
    key: String,
    was: String,
    is: String,
}

impl Sysctls {
    /// Those below /proc/sys. What a dead daemon has changed and written to `state` counts as changed.
    pub(super) fn open(state: PathBuf) -> Sysctls {
        Sysctls::below("/proc/sys".into(), state)
    }

    fn below(root: PathBuf, state: PathBuf) -> Sysctls {
        let read = open_file(File::options().read(true), &state)
            .and_then(|file| Ok(serde_json::from_reader(BufReader::new(file))?));
        let (mut changes, unread): (Vec<Change>, _) = match read {
            Ok(changes) => (changes, None),
            // That of before a reboot is gone with /run.
            Err(error) if error.kind() == io::ErrorKind::NotFound => (Vec::new(), None),
            Err(error) => (Vec::new(), Some(error)),
        };
        // Root may read what the service's user has written: no more comes of that than a switch of the network.
        changes.retain(|change| is_switch(&change.key));
        Sysctls {
            root,
            state,
            changes,
            unread,
        }
    }

    /// Lets packets that come from these interfaces be forwarded.
    pub(super) fn forward<'a>(
        &mut self,
        interfaces: impl Iterator<Item = &'a str>,
        ipv4: bool,
        ipv6: bool,
    ) -> Result<(), FirewallError> {
        for interface in interfaces {
            if ipv4 {
                self.set(&format!("net/ipv4/conf/{interface}/forwarding"), "1")?;
            }
            // Since 6.17; before, IPv6 is forwarded between all interfaces or none.
            let force = format!("net/ipv6/conf/{interface}/force_forwarding");
            if ipv6 && self.exists(&force) {
                self.set(&force, "1")?;
            } else if ipv6 {
                self.forward_ipv6_everywhere()?;
            }
        }
        Ok(())
    }

    /// A machine that forwards forgets the default routes that it has from router advertisements, unless accept_ra is 2.
    fn forward_ipv6_everywhere(&mut self) -> Result<(), FirewallError> {
        let interfaces = fs::read_dir(self.root.join("net/ipv6/conf")).into_iter().flatten();
        for name in interfaces.flatten().map(|entry| entry.file_name()) {
            let name = name.to_string_lossy();
            let accept = format!("net/ipv6/conf/{name}/accept_ra");
            if !matches!(&*name, "all" | "default") && self.get(&accept).is_ok_and(|value| value == "1") {
                self.set(&accept, "2")?;
            }
        }
        self.set("net/ipv6/conf/all/forwarding", "1")
    }

    /// Sets one switch.
    fn set(&mut self, key: &str, value: &str) -> Result<(), FirewallError> {
        let failed = |error| FirewallError::Sysctl {
            key: shown(key),
            value: value.into(),
            error,
        };
        let was = self.get(key).map_err(failed)?;
        if was == value {
            return Ok(());
        }
        if !self.changes.iter().any(|change| change.key == key) {
            self.changes.push(Change {
                key: key.into(),
                was,
                is: value.into(),
            });
            // What is not written down is not changed, at the next attempt neither.
            if let Err(error) = self.write_down() {
                self.changes.pop();
                return Err(error);
            }
        }
        fs::write(self.root.join(key), value).map_err(failed)
    }

    /// Puts everything back that nobody else has changed since.
    ///
    /// # Errors
    /// The last of what could not be put back, or not be removed; the rest was. What could not is still written down. A file that could
    /// not be read, or that others can have put there, is left as it is.
    pub(super) fn restore(&mut self) -> Result<(), FirewallError> {
        if let Some(unread) = &self.unread {
            let path = self.state.clone();
            let error = io::Error::new(unread.kind(), unread.to_string());
            return Err(FirewallError::State { path, error });
        }
        let mut result = Ok(());
        let mut left = Vec::new();
        while let Some(change) = self.changes.pop() {
            let put_back = match self.get(&change.key) {
                Ok(value) if value == change.is => fs::write(self.root.join(&change.key), &change.was),
                Ok(_) => Ok(()),
                // The interface is gone, and its switches with it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(error) => Err(error),
            };
            if let Err(error) = put_back {
                tracing::warn!(key = shown(&change.key), was = change.was, %error, "cannot put the switch back");
                result = Err(FirewallError::Sysctl {
                    key: shown(&change.key),
                    value: change.was.clone(),
                    error,
                });
                left.push(change);
            }
        }
        left.reverse();
        self.changes = left;
        if result.is_err() {
            return self.write_down().and(result);
        }
        match fs::remove_file(&self.state) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let path = self.state.clone();
                Err(FirewallError::State { path, error })
            }
            _ => result,
        }
    }

    fn write_down(&mut self) -> Result<(), FirewallError> {
        let text = serde_json::to_vec(&self.changes).expect("texts are JSON");
        let write = || {
            let new = with_suffix(&self.state, ".new");
            create_anew(&new)?.write_all(&text)?;
            fs::rename(&new, &self.state)
        };
        let written = write();
        if written.is_ok() {
            // It says all that is known now.
            if let Some(error) = self.unread.take() {
                tracing::warn!(path = %self.state.display(), %error, "what an earlier daemon has written down of switches was not read, and is replaced");
            }
        }
        written.map_err(|error| FirewallError::State {
            path: self.state.clone(),
            error,
        })
    }

    fn exists(&self, key: &str) -> bool {
        self.root.join(key).exists()
    }

    fn get(&self, key: &str) -> io::Result<String> {
        Ok(fs::read_to_string(self.root.join(key))?.trim_end().to_owned())
    }
}

/// Whether a key is one of those that are set here.
fn is_switch(key: &str) -> bool {
    let mut parts = Path::new(key).components();
    parts.next() == Some(Component::Normal("net".as_ref())) && parts.all(|part| matches!(part, Component::Normal(_)))
}

/// As sysctl(8) takes it: dots for slashes, and slashes for the dots of an interface's name.
fn shown(key: &str) -> String {
    let swap = |c| match c {
        '/' => '.',
        '.' => '/',
        c => c,
    };
    key.chars().map(swap).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree of switches, removed on drop.
    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str, switches: &[(&str, &str)]) -> Tree {
            let root = std::env::temp_dir().join(format!("ringway-sysctl-{}-{name}", std::process::id()));
            for (key, value) in switches {
                let path = root.join(key);
                fs::create_dir_all(path.parent().expect("a folder")).expect("a tree");
                fs::write(path, format!("{value}\n")).expect("a file");
            }
            Tree(root)
        }

        fn sysctls(&self) -> Sysctls {
            Sysctls::below(self.0.clone(), self.0.join("state"))
        }

        fn get(&self, key: &str) -> String {
            self.sysctls().get(key).expect("it is there")
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const V4: &str = "net/ipv4/conf/eth0/forwarding";
    const OTHER: &str = "net/ipv4/conf/eth1.7/forwarding";

    #[test]
    fn what_was_written_down_is_put_back_only_where_it_is_a_switch_of_the_network() {
        let tree = Tree::new("planted", &[(V4, "1"), ("kernel/core_pattern", "core"), ("net/x", "1")]);
        let elsewhere = tree.0.join("net/x");
        let change = |key: &str, is: &str| Change {
            key: key.into(),
            was: "evil".into(),
            is: is.into(),
        };
        let planted = [
            change(elsewhere.to_str().expect("a path of text"), "1"),
            change("kernel/core_pattern", "core"),
            change("net/../kernel/core_pattern", "core"),
            change(V4, "1"),
        ];
        fs::write(tree.0.join("state"), serde_json::to_vec(&planted).expect("JSON")).expect("a file");
        tree.sysctls().restore().expect("all of it can be");
        let now = ["kernel/core_pattern", "net/x", V4].map(|key| tree.get(key));
        assert_eq!(now, ["core", "1", "evil"]);
    }

    #[test]
    fn switches_are_put_back_as_they_were_also_after_a_crash() {
        let tree = Tree::new("crash", &[(V4, "0"), (OTHER, "1")]);
        let forward = |sysctls: &mut Sysctls| sysctls.forward(["eth0", "eth1.7"].into_iter(), true, false);
        let mut killed = tree.sysctls();
        forward(&mut killed).expect("they can be set");
        assert_eq!([tree.get(V4), tree.get(OTHER)], ["1", "1"]);
        drop(killed);
        let mut next = tree.sysctls();
        forward(&mut next).expect("they can be set");
        next.restore().expect("all of it can be");
        assert_eq!([tree.get(V4), tree.get(OTHER)], ["0", "1"]);
        assert!(!tree.0.join("state").exists());
        assert!(tree.sysctls().changes.is_empty());
    }

    #[test]
    fn what_cannot_be_put_back_is_told_and_stays_written_down() {
        let tree = Tree::new("stuck", &[(OTHER, "1"), ("net/ipv4/conf/eth0/x", "")]);
        // Not even root writes to this one.
        let fixed = Path::new("/proc/sys/kernel/ngroups_max");
        let value = fs::read_to_string(fixed)
            .expect("every kernel has it")
            .trim_end()
            .to_owned();
        std::os::unix::fs::symlink(fixed, tree.0.join(V4)).expect("a link");
        let change = |key: &str, is: &str| Change {
            key: key.into(),
            was: "0".into(),
            is: is.into(),
        };
        let changes = [change(OTHER, "1"), change(V4, &value)];
        fs::write(tree.0.join("state"), serde_json::to_vec(&changes).expect("JSON")).expect("a file");
        for _ in 0..2 {
            let told = tree.sysctls().restore().expect_err("it is fixed").to_string();
            assert!(told.contains("net.ipv4.conf.eth0.forwarding=0"), "{told}");
            assert_eq!(tree.get(OTHER), "0");
            assert_eq!(tree.sysctls().changes, changes[1..]);
        }
        fs::remove_file(tree.0.join(V4)).expect("it is there");
        fs::write(tree.0.join(V4), &value).expect("a file");
        tree.sysctls().restore().expect("all of it can be");
        assert_eq!(tree.get(V4), "0");
        assert!(!tree.0.join("state").exists());
    }

    #[test]
    fn a_file_that_cannot_be_read_is_told_and_stays() {
        let tree = Tree::new("unread", &[(V4, "0")]);
        let state = tree.0.join("state");
        fs::write(&state, "[{").expect("a file");
        let mut sysctls = tree.sysctls();
        for _ in 0..2 {
            sysctls.restore().expect_err("it is damaged");
            assert!(state.exists());
        }
        // Who goes on has one of its own in its place.
        let mut sysctls = tree.sysctls();
        sysctls
            .forward(["eth0"].into_iter(), true, false)
            .expect("it can be set");
        sysctls.restore().expect("all of it can be");
        assert_eq!(tree.get(V4), "0");
        assert!(!state.exists());
    }

    #[test]
    fn what_cannot_be_written_down_is_not_changed() {
        let tree = Tree::new("unwritten", &[(V4, "0"), ("state.new/in the way", "")]);
        let mut sysctls = tree.sysctls();
        for _ in 0..2 {
            let refused = sysctls.forward(["eth0"].into_iter(), true, false);
            refused.expect_err("a directory is in the way");
            assert_eq!(tree.get(V4), "0");
        }
    }

    #[test]
    fn what_cannot_be_removed_is_told() {
        let tree = Tree::new("kept", &[("state/in the way", "")]);
        let told = tree.sysctls().restore().expect_err("it is no file").to_string();
        let expected = format!("{}: cannot read, write or remove", tree.0.join("state").display());
        assert!(told.starts_with(&expected), "{told}");
    }

    #[test]
    fn what_others_have_changed_since_is_left_alone() {
        let tree = Tree::new("others", &[(V4, "0")]);
        let mut sysctls = tree.sysctls();
        sysctls
            .forward(["eth0"].into_iter(), true, false)
            .expect("it can be set");
        fs::write(tree.0.join(V4), "2").expect("a file");
        sysctls.restore().expect("all of it can be");
        assert_eq!(tree.get(V4), "2");
    }

    #[test]
    fn where_ipv6_is_forwarded_everywhere_routers_are_still_listened_to() {
        let all = "net/ipv6/conf/all/forwarding";
        let accept = ["eth0", "eth1", "default"].map(|name| format!("net/ipv6/conf/{name}/accept_ra"));
        let tree = Tree::new(
            "ipv6",
            &[(all, "0"), (&accept[0], "1"), (&accept[1], "0"), (&accept[2], "1")],
        );
        let values = || accept.each_ref().map(|key| tree.get(key));
        let mut sysctls = tree.sysctls();
        sysctls
            .forward(["eth0"].into_iter(), false, true)
            .expect("they can be set");
        assert_eq!(
            (tree.get(all), values()),
            ("1".into(), ["2", "0", "1"].map(str::to_owned))
        );
        sysctls.restore().expect("all of it can be");
        assert_eq!(
            (tree.get(all), values()),
            ("0".into(), ["1", "0", "1"].map(str::to_owned))
        );
    }

    #[test]
    fn where_the_kernel_has_it_ipv6_is_forwarded_from_the_interfaces_concerned_alone() {
        let force = "net/ipv6/conf/eth0/force_forwarding";
        let tree = Tree::new("force", &[(force, "0"), ("net/ipv6/conf/all/forwarding", "0")]);
        let mut sysctls = tree.sysctls();
        sysctls
            .forward(["eth0"].into_iter(), false, true)
            .expect("it can be set");
        assert_eq!([tree.get(force), tree.get("net/ipv6/conf/all/forwarding")], ["1", "0"]);
    }

    #[test]
    fn a_switch_that_is_missing_is_named_with_the_command_that_sets_it() {
        let tree = Tree::new("missing", &[(V4, "0")]);
        let error = tree.sysctls().forward(["eth1.7"].into_iter(), true, false);
        let text = error.expect_err("there is no such interface").to_string();
        assert!(text.ends_with("sysctl -w net.ipv4.conf.eth1/7.forwarding=1"), "{text}");
    }
}
