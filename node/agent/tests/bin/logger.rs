//! The logger alone, for this crate's tests: what `sluice logger` is in the product.

fn main() {
    std::process::exit(sluice_runtime::logger::run(std::env::args_os().skip(2)));
}
