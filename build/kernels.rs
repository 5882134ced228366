//! Compiles `src/engine/kernels/NAME.cu` to `NAME.fatbin`: machine code for several architectures and PTX, of which the driver
//! takes what fits. Part of the build script, and of `build/alone.rs`.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;

use super::architectures::Architectures;

/// How to compile.
pub(crate) struct Compiler {
    pub(crate) nvcc: PathBuf,
    /// Further arguments.
    pub(crate) arguments: Vec<OsString>,
    /// Files at the same time.
    pub(crate) threads: usize,
}

impl Compiler {
    /// Compiles all files of a folder that have changed since they were compiled into `out`, and returns nvcc's messages.
    ///
    /// # Errors
    /// When a file cannot be read, written or compiled.
    pub(crate) fn compile(&self, folder: &Path, out: &Path, architectures: &Architectures) -> Result<String, String> {
        let headers = files_of(folder, "cuh")?.iter().map(|path| read(path)).collect::<Result<Vec<_>, _>>()?.concat();
        let sources = Mutex::new(files_of(folder, "cu")?);
        let messages = Mutex::new(String::new());
        let work = || -> Result<(), String> {
            loop {
                let Some(source) = sources.lock().expect("no worker panics").pop() else { return Ok(()) };
                let new = self.compile_file(&source, &headers, out, architectures)?;
                messages.lock().expect("no worker panics").push_str(&new);
            }
        };
        thread::scope(|scope| {
            let workers: Vec<_> = (0..self.threads.max(1)).map(|_| scope.spawn(work)).collect();
            workers.into_iter().try_for_each(|worker| worker.join().expect("no worker panics"))
        })?;
        Ok(messages.into_inner().expect("no worker panics"))
    }

    fn compile_file(
        &self,
        source: &Path,
        headers: &str,
        out: &Path,
        architectures: &Architectures,
    ) -> Result<String, String> {
        let name = source.file_name().unwrap_or_default().to_string_lossy();
        let target = out.join(source.with_extension("fatbin").file_name().unwrap_or_default());
        let targets = architectures.arguments(&name);
        let mut command = Command::new(&self.nvcc);
        // Packed to a third of what nvcc's default gives.
        command.args(["-fatbin", "-std=c++17", "-O3", "--compress-mode=size"]).args(&targets).args(&self.arguments);
        command.arg("-o").arg(&target).arg(source);
        // What the file was compiled from, beside it.
        let record = target.with_extension("inputs");
        let inputs = format!("{command:?}\n{headers}\n{}", read(source)?);
        if target.exists() && fs::read_to_string(&record).is_ok_and(|recorded| recorded == inputs) {
            return Ok(String::new());
        }
        fs::write(&record, []).map_err(|error| about(&record, &error))?;
        if targets.is_empty() {
            // The program finds the file empty, and does without its kernels.
            return fs::write(&target, []).map(|()| String::new()).map_err(|error| about(&target, &error));
        }
        let output = command.output().map_err(|error| about(&self.nvcc, &error))?;
        let messages = String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.success() {
            return Err(format!("nvcc does not compile {}:\n{messages}", source.display()));
        }
        fs::write(&record, inputs).map_err(|error| about(&record, &error))?;
        Ok(messages)
    }
}

/// The files of a folder with an extension, in the order of their names.
fn files_of(folder: &Path, extension: &str) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(folder).map_err(|error| about(folder, &error))?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>();
    let mut paths = paths.map_err(|error| about(folder, &error))?;
    paths.retain(|path| path.extension().is_some_and(|found| found == extension));
    paths.sort();
    Ok(paths)
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| about(path, &error))
}

fn about(path: &Path, error: &std::io::Error) -> String {
    format!("{}: {error}", path.display())
}
