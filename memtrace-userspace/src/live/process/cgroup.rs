//! The text of `/proc/PID/cgroup`, and the container that it or `mountinfo` names.
//!
//! A process is in one cgroup of each hierarchy: of the unified one (version 2), of one for each
//! set of controllers (version 1), or of both kinds.
//!
//! ```text
//!   0::/system.slice/docker-3f…9a.scope                       version 2
//!   4:memory:/kubepods/burstable/pod7e…/3f…9a                 version 1, controller memory
//! ```
//!
//! Docker, podman, containerd and CRI-O name the cgroup after the container's id, 64 hexadecimal
//! digits, with something around it. Where a cgroup namespace hides the path, Docker and podman
//! still mount files from a directory with that name over `/etc/hosts` and the like.

/// Digits of a container's id.
pub const CONTAINER_ID_DIGITS: usize = 64;

/// What runtimes put before the id of a container in whose cgroup only their monitor runs.
const MONITORS: [&[u8]; 2] = [b"libpod-conmon-", b"crio-conmon-"];

/// Files of a container that Docker and podman mount from the directory of the container.
const MOUNTED: [&[u8]; 3] = [b"/etc/hosts", b"/etc/hostname", b"/etc/resolv.conf"];

/// A process's place in one hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    /// Names under which the hierarchy may be mounted below `/sys/fs/cgroup`.
    pub mounted_as: Vec<Vec<u8>>,
    /// From the root of the hierarchy, as memtrace's cgroup namespace shows it.
    pub path: Vec<u8>,
}

impl Cgroup {
    /// Whether it is that of version 2.
    pub fn is_unified(&self) -> bool {
        self.mounted_as == [b"unified"]
    }
}

/// Parses `cgroup`, whose lines are `number:controllers:path`. Lines of other shapes are left out.
pub fn parse_cgroups(text: &[u8]) -> Vec<Cgroup> {
    let lines = text.split(|&byte| byte == b'\n');
    lines
        .filter_map(|line| {
            let mut fields = line.splitn(3, |&byte| byte == b':');
            let (_number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            let mounted_as = match controllers {
                b"" => vec![b"unified".to_vec()],
                _ => {
                    let each = controllers.split(|&byte| byte == b',');
                    let name = |name: &[u8]| name.strip_prefix(b"name=").unwrap_or(name).to_vec();
                    let mut names: Vec<_> = each.map(name).collect();
                    if names.len() > 1 {
                        names.push(controllers.to_vec());
                    }
                    names
                }
            };
            Some(Cgroup { mounted_as, path: path.to_vec() })
        })
        .collect()
}

/// The path that says most: that of version 2 unless it is the root, else one of version 1.
pub fn telling_path(cgroups: &[Cgroup]) -> Option<&[u8]> {
    let unified = cgroups.iter().filter(|cgroup| cgroup.is_unified());
    let others = cgroups.iter().filter(|cgroup| !cgroup.is_unified());
    let mut all = unified.chain(others).map(|cgroup| cgroup.path.as_slice());
    all.find(|path| *path != b"/").or(cgroups.first().map(|cgroup| cgroup.path.as_slice()))
}

/// The ids of the containers that a process is in, by its cgroups, the innermost last.
pub fn containers(cgroups: &[Cgroup]) -> Vec<Vec<u8>> {
    let of_one = |cgroup: &Cgroup| -> Vec<Vec<u8>> {
        let parts = cgroup.path.split(|&byte| byte == b'/');
        parts.filter_map(container_of_part).map(<[u8]>::to_vec).collect()
    };
    // A process is in the same container in every hierarchy that has one; some have none.
    cgroups.iter().map(of_one).max_by_key(Vec::len).unwrap_or_default()
}

/// The id in `docker-ID.scope`, `ID`, `…:cri-containerd:ID` and the like.
fn container_of_part(part: &[u8]) -> Option<&[u8]> {
    if MONITORS.iter().any(|monitor| part.starts_with(monitor)) {
        return None;
    }
    part.split(|byte| !byte.is_ascii_alphanumeric()).find(|word| is_container_id(word))
}

/// Whether this is a whole id of a container.
fn is_container_id(word: &[u8]) -> bool {
    word.len() == CONTAINER_ID_DIGITS && word.iter().all(u8::is_ascii_hexdigit)
}

/// The container's id in `mountinfo`, whose lines are `id parent device root mount-point …`.
pub fn container_of_mounts(text: &[u8]) -> Option<Vec<u8>> {
    text.split(|&byte| byte == b'\n').find_map(|line| {
        let mut fields = line.split(|&byte| byte == b' ').skip(3);
        let (root, mount_point) = (fields.next()?, fields.next()?);
        if !MOUNTED.contains(&mount_point) {
            return None;
        }
        let directory = root.split(|&byte| byte == b'/');
        let parents = directory.clone();
        // A sandbox is what the containers of a pod share, and no container itself.
        let of_container = |parent: &[u8]| parent.ends_with(b"containers");
        parents
            .zip(directory.skip(1))
            .find(|(parent, part)| of_container(parent) && is_container_id(part))
            .map(|(_, id)| id.to_vec())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "3f2a9c1d5b7e4f60813fa2b4c6d8e0f13f2a9c1d5b7e4f60813fa2b4c6d8e09a";
    const OTHER: &str = "0000000000000000000000000000000000000000000000000000000000000001";

    fn found(text: &str) -> Vec<String> {
        let ids = containers(&parse_cgroups(text.replace("ID", ID).as_bytes()));
        ids.into_iter().map(|id| String::from_utf8(id).expect("digits")).collect()
    }

    #[test]
    fn id_is_found_as_every_runtime_writes_it() {
        let texts = [
            // Docker with systemd and with cgroupfs, version 2 and 1.
            "0::/system.slice/docker-ID.scope\n",
            "0::/docker/ID\n",
            "12:pids:/docker/ID\n4:memory:/docker/ID\n1:name=systemd:/docker/ID\n0::/\n",
            // Rootless Docker and podman.
            "0::/user.slice/user-1000.slice/user@1000.service/user.slice/docker-ID.scope\n",
            "0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope/container\n",
            "0::/machine.slice/libpod-ID.scope\n",
            // Kubernetes with containerd and CRI-O, with systemd and with cgroupfs.
            "0::/kubepods.slice/kubepods-besteffort.slice/\
             kubepods-besteffort-pod7e1c0f2a_4b6d_4c8e_9f0a_1b2c3d4e5f60.slice/\
             cri-containerd-ID.scope\n",
            "4:memory:/kubepods/burstable/pod7e1c0f2a-4b6d-4c8e-9f0a-1b2c3d4e5f60/ID\n",
            "0::/kubepods.slice/kubepods-pod7e1c0f2a_4b6d_4c8e_9f0a_1b2c3d4e5f60.slice/crio-ID.scope\n",
            "0::/system.slice/containerd.service/kubepods-besteffort-pod7e1c.slice:cri-containerd:ID\n",
            // containerd without Kubernetes (nerdctl, ctr).
            "0::/system.slice/nerdctl-ID.scope\n",
            "0::/default/ID\n",
        ];

        for text in texts {
            assert_eq!(found(text), [ID], "{text}");
        }
    }

    #[test]
    fn service_and_monitor_are_in_no_container() {
        for text in [
            "0::/system.slice/nginx.service\n",
            "0::/machine.slice/libpod-conmon-ID.scope\n",
            "0::/system.slice/crio-conmon-ID.scope\n",
            "0::/\n",
            "",
            "nonsense",
        ] {
            assert_eq!(found(text), [""; 0], "{text}");
        }
    }

    #[test]
    fn container_in_a_container_comes_last() {
        assert_eq!(found(&format!("0::/docker/{OTHER}/docker/ID\n")), [OTHER, ID]);
    }

    #[test]
    fn path_may_hold_colons() {
        let cgroups = parse_cgroups(b"11:cpu,cpuacct:/a:b\n1:name=systemd:/init.scope\n0::/c\n");

        let cgroup = |mounted_as: &[&str], path: &str| Cgroup {
            mounted_as: mounted_as.iter().map(|name| name.as_bytes().to_vec()).collect(),
            path: path.as_bytes().to_vec(),
        };
        assert_eq!(
            cgroups,
            [
                cgroup(&["cpu", "cpuacct", "cpu,cpuacct"], "/a:b"),
                cgroup(&["systemd"], "/init.scope"),
                cgroup(&["unified"], "/c"),
            ]
        );
    }

    #[test]
    fn telling_path_is_not_the_root_if_another_is_there() {
        let path = |text: &str| telling_path(&parse_cgroups(text.as_bytes())).map(<[u8]>::to_vec);

        assert_eq!(path("4:memory:/a\n0::/b\n"), Some(b"/b".to_vec()));
        assert_eq!(path("4:memory:/a\n0::/\n"), Some(b"/a".to_vec()));
        assert_eq!(path("0::/\n"), Some(b"/".to_vec()));
        assert_eq!(path(""), None);
    }

    #[test]
    fn container_is_found_by_what_is_mounted_over_its_hosts() {
        let docker = format!(
            "621 620 0:48 / / rw - overlay overlay rw\n\
             646 621 8:1 /var/lib/docker/containers/{ID}/hosts /etc/hosts rw - ext4 /dev/sda1 rw\n"
        );
        let podman = format!(
            "646 621 0:50 /containers/storage/overlay-containers/{ID}/userdata/resolv.conf \
             /etc/resolv.conf rw - tmpfs tmpfs rw\n"
        );
        let pod = format!(
            "646 621 0:50 /io.containerd.grpc.v1.cri/sandboxes/{ID}/resolv.conf \
             /etc/resolv.conf rw - tmpfs tmpfs rw\n"
        );
        let host = format!("646 621 8:1 /var/lib/docker/containers/{ID} /mnt rw - ext4 x rw\n");

        assert_eq!(container_of_mounts(docker.as_bytes()), Some(ID.as_bytes().to_vec()));
        assert_eq!(container_of_mounts(podman.as_bytes()), Some(ID.as_bytes().to_vec()));
        assert_eq!(container_of_mounts(pod.as_bytes()), None);
        assert_eq!(container_of_mounts(host.as_bytes()), None);
        assert_eq!(container_of_mounts(b"a b\n"), None);
    }
}
