//! `mlskeyctl`: what an administrator sees of mlskeyd and does to it.

fn main() -> std::process::ExitCode {
    mlskeyd::ctl::main()
}
