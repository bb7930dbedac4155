#include "llm/serve/page.h"

namespace llm {

std::string_view page() {
  // The Makefile writes page.html into a raw string.
  static constexpr std::string_view kPage =
#include "llm/serve/page.html.inc"
      ;
  return kPage;
}

}  // namespace llm
