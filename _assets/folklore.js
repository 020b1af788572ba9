// "Folklore, checked": search and filter, in the page itself. "Test yourself": the score.
// Without this script the whole list is there, and the quiz answers by styles alone.
(() => {
  const make = (tag, content = {}, ...inside) => {
    const one = Object.assign(document.createElement(tag), content);
    one.append(...inside);
    return one;
  };

  const filter = (entries) => {
    const sections = [...new Set(entries.map((one) => one.closest("section")))];
    const search = make("input", {type: "search", autocomplete: "off"});
    const topic = make("select", {autocomplete: "off"}, make("option", {value: ""}, "all"));
    sections.forEach((one, at) => {
      const name = one.querySelector("h2").firstChild.textContent;
      topic.append(make("option", {value: String(at)}, name));
    });
    const hits = make("p", {className: "folklore-hits"});
    hits.setAttribute("role", "status");
    const form = make("form", {className: "folklore-form"},
      make("label", {}, "Search the claims ", search), make("label", {}, "Topic ", topic), hits);
    form.setAttribute("role", "search");
    form.setAttribute("aria-label", "Claims");
    sections[0].before(form);
    const texts = entries.map((one) => one.textContent.toLowerCase());

    const update = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      let count = 0;
      entries.forEach((one, at) => {
        const here = topic.value === "" || sections[topic.value] === one.closest("section");
        one.hidden = !(here && words.every((word) => texts[at].includes(word)));
        count += !one.hidden;
      });
      for (const one of sections) one.hidden = !one.querySelector(".folklore-entry:not([hidden])");
      hits.textContent = count ? `${count} of ${entries.length} claims` : "No claim has all these words.";
    };
    const showTarget = () => { // a link to a claim that is filtered away
      const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
      if (!target || !(target.hidden || target.closest("[hidden]"))) return;
      search.value = topic.value = "";
      update();
      target.scrollIntoView();
    };
    form.addEventListener("input", update);
    form.addEventListener("submit", (event) => event.preventDefault());
    window.addEventListener("hashchange", showTarget);
    update();
  };

  const keepScore = (questions) => {
    const score = make("p", {className: "quiz-score"});
    score.setAttribute("role", "status");
    const again = make("button", {type: "button", className: "quiz-again"}, "Start again");
    questions[0].before(make("div", {className: "quiz-bar"}, score, again));
    const update = (event) => {
      const chosen = questions.map((one) => one.querySelector("input:checked")).filter(Boolean);
      const right = chosen.filter((one) => one.classList.contains("right")).length;
      const verdict = event ? (event.target.classList.contains("right") ? "Right. " : "No. ") : "";
      score.textContent = chosen.length
        ? `${verdict}${right} of ${chosen.length} right, ${questions.length - chosen.length} to go`
        : `${questions.length} sentences`;
    };
    document.addEventListener("change", update);
    again.addEventListener("click", () => {
      for (const one of document.querySelectorAll(".quiz input")) one.checked = false;
      update();
      questions[0].querySelector("input").focus();
    });
    update();
  };

  window.addEventListener("DOMContentLoaded", () => {
    const entries = [...document.querySelectorAll(".folklore-entry")];
    if (entries.length) filter(entries);
    const questions = [...document.querySelectorAll("fieldset.quiz")];
    if (questions.length) keepScore(questions);
  });
})();
