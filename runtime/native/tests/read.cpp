// Reads bundles, on each line of standard input a path and, after a tab, a key to trust if there is one: prints the members with their
// SHA-256 and what the signature's inputs are, or the error, on one line.
#include <iostream>
#include <optional>
#include <string>

#include "bundle.h"
#include "digest.h"
#include "error.h"

int main() {
  std::string line;
  while (std::getline(std::cin, line)) {
    const size_t tab = line.find('\t');
    const auto trust = tab == std::string::npos ? std::nullopt : std::optional<std::string>(line.substr(tab + 1));
    try {
      const cpuc::Bundle bundle = cpuc::Bundle::open(line.substr(0, tab), trust);
      bundle.check_digests();
      std::string text = "ok";
      for (const auto& [name, member] : bundle.members)
        text += " " + name + "@" + std::to_string(member.offset) + "+" + std::to_string(member.size) + "=" + cpuc::sha256(*bundle.file, member);
      std::cout << text << "\n";
    } catch (const cpuc::Error& error) {
      std::cout << error.what() << "\n";
    }
  }
}
