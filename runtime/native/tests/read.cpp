// Reads archives, one path a line on standard input: prints each one's members with their SHA-256, or the error, on one line.
#include <iostream>
#include <string>

#include "archive.h"
#include "digest.h"
#include "error.h"

int main() {
  std::string path;
  while (std::getline(std::cin, path)) {
    try {
      const cpuc::File file(path);
      std::string line = "ok";
      for (const cpuc::Member& member : cpuc::list_members(file, "extra/manifest.json"))
        line += " " + member.name + "@" + std::to_string(member.offset) + "+" + std::to_string(member.size) + "=" + cpuc::sha256(file, member);
      std::cout << line << "\n";
    } catch (const cpuc::Error& error) {
      std::cout << error.what() << "\n";
    }
  }
}
