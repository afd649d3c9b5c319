//! Who a container runs as: `runAsUser` and friends, else the image's `USER`, looked up in the image's own
//! `/etc/passwd` and `/etc/group`. Pure: the files' text comes in.

use crate::{Error, Result, Security};

/// The ids of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups, sorted.
    pub(crate) groups: Vec<u32>,
}

/// The image's user files; asked for only when ids cannot do without them.
pub(crate) trait Files {
    fn passwd(&self) -> String;
    fn group(&self) -> String;
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
}

/// Resolves the user of a container; `image_user` is `user[:group]`, names or numbers.
pub(crate) fn resolve(security: &Security, image_user: &str, files: &impl Files) -> Result<Identity> {
    let (user, group) = image_user.split_once(':').unwrap_or((image_user, ""));
    if security.run_as_non_root {
        refuse_root(security, user)?;
    }
    let passwd = files.passwd();
    let account = match security.run_as_user {
        Some(uid) => find(&passwd, &id(uid)?.to_string()),
        None if user.is_empty() => find(&passwd, "0"),
        None => find(&passwd, user),
    };
    let uid = match security.run_as_user {
        Some(uid) => id(uid)?,
        None if user.is_empty() => 0,
        None => account
            .as_ref()
            .map(|account| account.uid)
            .or_else(|| user.parse().ok())
            .ok_or_else(|| Error::InvalidSpec(format!("no user {user:?} in the image's /etc/passwd")))?,
    };
    let groups_file = files.group();
    let own_gid = account.as_ref().map_or(0, |account| account.gid);
    let gid = match security.run_as_group {
        Some(gid) => id(gid)?,
        None if security.run_as_user.is_none() && !group.is_empty() => group_id(&groups_file, group)?,
        None => own_gid,
    };
    let mut groups: Vec<u32> = match &account {
        Some(account) => memberships(&groups_file, account.name),
        None => Vec::new(),
    };
    for extra in &security.supplemental_groups {
        groups.push(id(*extra)?);
    }
    groups.push(gid);
    groups.sort_unstable();
    groups.dedup();
    Ok(Identity { uid, gid, groups })
}

/// As kubelet's verification of `runAsNonRoot`.
fn refuse_root(security: &Security, image_user: &str) -> Result<()> {
    match security.run_as_user {
        Some(0) => Err(Error::RunAsRoot),
        Some(_) => Ok(()),
        None if image_user.is_empty() => Err(Error::RunAsRoot),
        None => match image_user.parse::<u32>() {
            Ok(0) => Err(Error::RunAsRoot),
            Ok(_) => Ok(()),
            Err(_) => Err(Error::RunAsNamedUser(image_user.to_owned())),
        },
    }
}

fn id(value: i64) -> Result<u32> {
    u32::try_from(value).map_err(|_| Error::InvalidSpec(format!("{value} is no user or group id")))
}

/// The account of this name, or of this number.
fn find<'a>(passwd: &'a str, user: &str) -> Option<Account<'a>> {
    let accounts = || {
        passwd.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let uid = fields.nth(1)?.parse().ok()?;
            Some(Account { name, uid, gid: fields.next()?.parse().ok()? })
        })
    };
    let number: Option<u32> = user.parse().ok();
    accounts().find(|account| account.name == user).or_else(|| accounts().find(|account| Some(account.uid) == number))
}

fn group_id(groups: &str, group: &str) -> Result<u32> {
    let named = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == group).then(|| fields.nth(1)?.parse().ok()).flatten()
    });
    named
        .or_else(|| group.parse().ok())
        .ok_or_else(|| Error::InvalidSpec(format!("no group {group:?} in the image's /etc/group")))
}

fn memberships(groups: &str, user: &str) -> Vec<u32> {
    let ids = groups.lines().filter_map(|line| {
        let mut fields = line.split(':').skip(2);
        let gid = fields.next()?.parse().ok()?;
        fields.next()?.split(',').any(|member| member == user).then_some(gid)
    });
    ids.collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    struct Image;

    impl Files for Image {
        fn passwd(&self) -> String {
            "root:x:0:0:root:/root:/bin/sh\nweb:x:101:102:web:/:/bin/false\n".into()
        }
        fn group(&self) -> String {
            "root:x:0:\nweb:x:102:\nlogs:x:7:web,other\n".into()
        }
    }

    fn check(image_user: &str, set: impl FnOnce(&mut Security), want: Result<(u32, u32, &[u32]), &str>) {
        let mut security = Security::default();
        set(&mut security);
        let got = resolve(&security, image_user, &Image).map_err(|error| error.to_string());
        let want = want.map(|(uid, gid, groups)| Identity { uid, gid, groups: groups.to_vec() });
        assert_eq!(got, want.map_err(str::to_owned), "{image_user:?} {security:?}");
    }

    #[test]
    fn users_come_from_the_pod_then_the_image() {
        check("", |_| {}, Ok((0, 0, &[0])));
        check("web", |_| {}, Ok((101, 102, &[7, 102])));
        check("101", |_| {}, Ok((101, 102, &[7, 102])));
        check("web:logs", |_| {}, Ok((101, 7, &[7])));
        check("1234", |_| {}, Ok((1234, 0, &[0])));
        check("1234:5", |_| {}, Ok((1234, 5, &[5])));
        check("web", |security| security.run_as_user = Some(5), Ok((5, 0, &[0])));
        check("web:logs", |security| security.run_as_group = Some(9), Ok((101, 9, &[7, 9])));
        check("", |security| security.supplemental_groups = vec![3, 2], Ok((0, 0, &[0, 2, 3])));
        check("nobody", |_| {}, Err("no user \"nobody\" in the image's /etc/passwd"));
        check("web:none", |_| {}, Err("no group \"none\" in the image's /etc/group"));
    }

    #[test]
    fn root_is_refused_where_the_pod_says_so() {
        let root = "container has runAsNonRoot and image will run as root";
        let named = "container has runAsNonRoot and image has non-numeric user (web), cannot verify user is non-root";
        for (image_user, run_as, want) in [
            ("", None, Err(root)),
            ("0:5", None, Err(root)),
            ("101", None, Ok((101, 102, &[7, 102][..]))),
            ("web", None, Err(named)),
            ("web", Some(0), Err(root)),
            ("", Some(101), Ok((101, 102, &[7, 102][..]))),
        ] {
            let set = |security: &mut Security| {
                security.run_as_non_root = true;
                security.run_as_user = run_as;
            };
            check(image_user, set, want);
        }
    }
}
