//! A disk that can be full: a small tmpfs, where the user may mount one. The journal of a busy minute fits on it.

use std::{
    fs::{File, remove_file},
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

pub struct SmallDisk {
    directory: TempDir,
}

impl SmallDisk {
    /// `None` where nothing may be mounted.
    pub fn mount() -> Option<SmallDisk> {
        let directory = TempDir::new().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=128m", "none"])
            .arg(directory.path())
            .output();
        mounted
            .is_ok_and(|output| output.status.success())
            .then_some(SmallDisk { directory })
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }

    /// To the last byte.
    pub fn fill(&self) {
        let mut file = File::create(self.ballast()).unwrap();
        for portion in [1 << 20, 1 << 12, 1] {
            while file.write_all(&vec![0; portion]).is_ok() {}
        }
    }

    pub fn empty(&self) {
        remove_file(self.ballast()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Whoever still has a file open on it goes on.
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}
