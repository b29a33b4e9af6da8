// cpuc-run: named tensors in, the model's outputs out.
#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>

#include "cpuc.h"
#include "text.h"

namespace {

std::string read_input(const std::string& source) {
  if (source == "-") return {std::istreambuf_iterator<char>(std::cin), {}};
  std::ifstream file(source, std::ios::binary);
  if (!file) throw cpuc::Error(cpuc::Kind::input, source + (errno == ENOENT ? ": no such file" : std::string(": cannot be read: ") + std::strerror(errno)));
  std::string data(std::istreambuf_iterator<char>(file), {});
  if (file.bad()) throw cpuc::Error(cpuc::Kind::input, source + ": cannot be read");
  return data;
}

int fail(const std::string& message) {
  std::cerr << "cpuc: " << cpuc::printable(message) << "\n";
  return 1;
}

}  // namespace

int main(int count, char** arguments) {
  CLI::App program("Answers from an artifact of 'cpuc compile': named tensors in, the model's outputs out.\n\n"
                   "Example:\n  cpuc-run model.pt --raw --input tensors.json --trust key.pub.pem", "cpuc-run");
  std::string path, source;
  cpuc::LoadOptions options;
  bool raw = false, unchecked = false;
  program.add_option("BUNDLE", path, "The artifact.")->required();
  program.add_option("-i,--input", source, "A JSON object of nested lists; - is standard input.")->required();
  program.add_flag("--raw", raw, "Named tensors in, the model's outputs out: the only form that this program has.")->required();
  program.add_option("--trust", options.trust, "Answer only if the bundle is signed by this public key (PEM).");
  program.add_flag("--no-check-digests", unchecked, "Do not compare the bundle with its SHA-256 digests first.");
  try {
    program.parse(count, arguments);
  } catch (const CLI::ParseError& error) {
    return program.exit(error) == 0 ? 0 : 2;
  }
  options.check_digests = !unchecked;
  try {
    const cpuc::Bundle bundle = cpuc::Bundle::open(path, options.trust);
    const cpuc::Tensors inputs = cpuc::parse_tensors(read_input(source), source == "-" ? "standard input" : source, bundle.manifest);
    const cpuc::Model model = cpuc::Model::load(bundle, options.trust.has_value(), options.check_digests);
    std::cout << cpuc::format_tensors(model.run(inputs), model.manifest()) << std::flush;
    return std::cout ? 0 : fail("standard output cannot be written");
  } catch (const cpuc::Error& error) {
    return fail(error.what());
  } catch (const std::bad_alloc&) {
    return fail("out of memory");
  } catch (const std::exception& error) {
    const std::string message = error.what();
    return fail("unexpected error: " + message.substr(0, message.find('\n')));
  }
}
