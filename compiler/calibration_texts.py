"""Texts of many kinds, written for cpuc, by which static int8 chooses its scales where the user gives no sample."""

from __future__ import annotations

# (question, text), in several registers and languages: what scales have to cover is variety.
TEXTS: tuple[tuple[str, str], ...] = (
    (
        "What did the committee decide about the harbour fees?",
        "After a session of almost seven hours the port committee voted 9 to 4 on Tuesday to lower the fees for vessels under "
        "24 metres by 15 percent. Larger ships will pay as before until a new study of the dredging costs is finished. "
        "“Nobody got everything they came for,” said Marta Lindqvist, who has chaired the committee since 2016, “but the small "
        "yards can plan again.” Two members from the fishing association left the room before the vote. They argue that the "
        "cut, which costs the town about €410,000 a year, should have been tied to quieter engines, and announced an appeal.",
    ),
    (
        "Which enzyme unwinds the double helix?",
        "Before a cell divides it must copy its DNA. The process begins at many origins of replication at once, where the enzyme "
        "helicase unwinds the double helix and separates its strands. Because polymerases can only extend a chain in one "
        "direction, from 5′ to 3′, one strand is copied continuously while the other is made in short pieces, the Okazaki "
        "fragments, which ligase joins afterwards. Errors occur about once in 100,000 bases; proofreading and repair bring the "
        "rate down to roughly one in a billion. Mutations that escape them are the raw material of evolution, and of cancer.",
    ),
    (
        "Who won the second set?",
        "Okafor needed only 28 minutes for the first set, 6–1, and had two break points at the start of the second. Then the "
        "wind turned. Her serve lost its length, Petrović began to come to the net, and at 4–4 a double fault gave the Serbian "
        "the game that decided the set. The third went to a tie-break, the ninth that the two have played against each other. "
        "On her fourth match point, after two hours and 51 minutes, Okafor hit a backhand down the line that even her coach had "
        "stopped believing in. She meets the winner of Sunday's second quarter-final, Chen or Almeida.",
    ),
    (
        "Why did the old king send his sons away?",
        "The king had three sons, and none of them would listen. So when he felt that winter had come to stay in his bones he "
        "sent them out, the first to the mountains, the second to the sea and the youngest nowhere in particular. “Bring me what "
        "cannot be bought,” he said, and closed the gate behind them with his own hands. The eldest came back with a bag of "
        "echoes. The second brought a wave, which had gone flat on the way. Of the third nothing was heard for so long that the "
        "cook took his plate from the shelf; and on that very evening somebody knocked.",
    ),
    (
        "What should be checked before the pump is restarted?",
        "WARNING: disconnect the supply before opening the housing. 1. Close valves V3 and V4. 2. Release the pressure at the "
        "bleed screw (max. 2.5 bar) until water runs without bubbles. 3. Remove the four M8 bolts and lift off the cover. 4. "
        "Check the impeller for cracks; replace it if the blades are worn by more than 1.5 mm. 5. Clean the seal seat with a "
        "lint-free cloth, never with solvents. Refit in reverse order, torque 22 Nm crosswise. Before the pump is restarted, "
        "check the direction of rotation: an arrow on the motor shows it. Error code E-17 means that the float switch is stuck.",
    ),
    (
        "How long is the notice period?",
        "§ 4 Term and termination. (1) This agreement begins on the date of the last signature and runs for an indefinite period. "
        "(2) Either party may terminate it with a notice period of three months to the end of a quarter, in writing; electronic "
        "mail does not satisfy this requirement. (3) The right to terminate without notice for good cause remains unaffected. "
        "Good cause exists in particular if the licensee is more than 60 days in arrears with a payment that is not merely "
        "insignificant, or if insolvency proceedings over its assets have been opened. (4) Sections 7, 9 and 12 survive.",
    ),
    (
        "What annoyed the guest about the room?",
        "Stayed here for two nights in late August with my sister. Honestly? Mixed feelings. The breakfast is AMAZING (try the "
        "fig jam!!), staff super friendly, 5 min walk to the metro... but our room smelled like someone had been frying fish in "
        "it, and the AC rattled all night :( We asked to change and they said \"fully booked\", yet the page still showed 3 "
        "rooms free. Came with a 10% voucher as an apology, so ok, fair enough. Wouldn't pay 189 a night again but for 120 or so "
        "I'd give it another chance. 3/5.",
    ),
    (
        "Which function is slow, and what is the cause?",
        "I profiled the importer with 2.3 million rows. 71 % of the time is spent in parse_date(), which compiles the same "
        "regular expression on every call; moving it out of the loop brought the run from 41 s to 13 s. The rest is I/O. There "
        "is also a bug: `rows[-1]` raises IndexError for an empty file, see https://example.org/issues/882. Could you rebase "
        "onto main, squash the three commits and add a test for the empty file? def test_empty(): assert load(\"empty.csv\") == "
        "[]. After that LGTM. PS: Python 3.8 is no longer supported, so the walrus is fine.",
    ),
    (
        "When did the treaty come into force?",
        "The treaty was negotiated in Geneva between 1951 and 1954, signed by eleven states, and came into force on 1 March 1957 "
        "after the seventh ratification. It divided the basin into three zones, gave the upper riparians a guaranteed share of "
        "38 percent of the annual flow, and set up a permanent commission with a seat in Vienna. Historians disagree on its "
        "effects. To Hartmann (1988) it is the reason why there was no war over water in the region; Rossi and Dumont point out "
        "that the commission met only twice in its first decade and that the droughts of 1963 and 1976 were settled elsewhere.",
    ),
    (
        "How much flour is needed?",
        "Lemon tart for eight. For the crust: 250 g flour, 125 g cold butter, 80 g sugar, 1 egg, a pinch of salt. For the "
        "filling: 4 lemons (zest and juice), 5 eggs, 180 g sugar, 150 ml cream. Rub butter and flour together, add the rest, and "
        "let the dough rest in the fridge for an hour. Roll it out, line a 26 cm tin, bake blind at 190 °C for 15 minutes. Whisk "
        "the filling without making it foam, pour it in, and bake at 140 °C until the middle only just trembles, about half an "
        "hour. It will set as it cools. Keeps two days, if nobody finds it.",
    ),
    (
        "What is the difference between weather and climate?",
        "Weather is what you get, climate is what you expect: the average of many years of weather. One cold winter says as "
        "little about the climate as one rich man says about the income of a country. What can be measured is a shift of the "
        "whole distribution. Since 1880 the mean temperature near the surface has risen by about 1.2 °C, over land more than "
        "over the sea and in the Arctic three times as much as elsewhere; nights have warmed more than days. Models reproduce "
        "this only if greenhouse gases are included. Clouds remain the largest source of uncertainty.",
    ),
    (
        "What does the patient take?",
        "72-year-old man, admitted with shortness of breath and swelling of both legs for ten days. History: type 2 diabetes, "
        "hypertension, myocardial infarction 2014, no known allergies. Medication on admission: metformin 1000 mg 1-0-1, "
        "ramipril 5 mg 1-0-0, ASA 100 mg. BP 165/95 mmHg, pulse 104/min irregular, SpO2 91 % on room air; crackles over both "
        "lungs. NT-proBNP 4,380 pg/ml, creatinine 1.4 mg/dl, potassium 4.9. Echo: EF 35 %. Improved under furosemide i.v.; "
        "weight fell by 6.2 kg. Please check electrolytes in one week.",
    ),
    (
        "Wann fährt der letzte Zug?",
        "Der letzte Zug nach Norden fährt um 22.47 Uhr von Gleis 4, sonn- und feiertags schon um 21.15 Uhr. Wer ihn verpasst, "
        "nimmt den Nachtbus N6, der bis halb drei jede Stunde am Südausgang hält. Wegen Bauarbeiten an der Weserbrücke müssen "
        "Reisende bis Ende November mit Verspätungen von bis zu zwanzig Minuten rechnen; Fahrräder werden nicht befördert.",
    ),
    (
        "Qui a peint le tableau volé ?",
        "Le tableau volé dimanche au musée municipal, une petite huile sur bois attribuée à Élise Carpentier, n'était pas assuré. "
        "D'après la conservatrice, l'œuvre valait « trop peu pour un assureur et beaucoup trop pour nous ». La police cherche un "
        "homme d'une quarantaine d'années, vêtu d'un imperméable beige, qui aurait quitté la salle vers 16 h 30.",
    ),
    (
        "¿Cuántos habitantes tiene el pueblo?",
        "En invierno el pueblo tiene apenas 340 habitantes; en agosto son más de dos mil. La escuela, con once alumnos, estuvo a "
        "punto de cerrar en 2019. Desde entonces han llegado cuatro familias, atraídas por la fibra óptica y los alquileres "
        "bajos, y el ayuntamiento ofrece terrenos a quien abra un negocio y se quede al menos cinco años.",
    ),
    (
        "What does the HSA stand for?",
        "The Harbour Safety Authority (HSA), founded in 1974 by the Ministry of Transport (MoT) and the Union of Pilots (UP), "
        "publishes its rules as a PDF of 312 pp. Vessels (LOA > 24 m, GT ≥ 300) need an AIS transponder [class A], a VHF radio "
        "(ch. 12/16) and a certificate under IMO Res. A.1047(27); see §4.2(b), Fig. 3 and the FAQ. In 2011 the HSA, the "
        "Coastal Research Board (CRB), NOAMET (the met office) and WHZV signed an MoU on data: XML over HTTP, UTF-8, once per "
        "15 min. Critics (e.g. the NGO \"SeaWatch\") say that a \"temporary\" exemption (SEO 77/B) never ended.",
    ),
    (
        "Which key holds the time-out?",
        "{\"name\": \"queue-worker\", \"retries\": 3, \"timeout_ms\": 2500, \"hosts\": [\"10.0.0.12:8080\", \"db-2.internal\"]}\n"
        "# TODO(kim): drop v1 after 2024-06-30\nfor (int i = 0; i < n; ++i) { sum += a[i] * 0x1F; } // see https://example.org/docs?id=42#api\n"
        "SELECT id, COUNT(*) FROM orders WHERE status <> 'open' GROUP BY id HAVING COUNT(*) >= 10;",
    ),
    (
        "how many stars did they give??",
        "OMG this phone!!! 😍😍 bought it 4 my mum & she LOVES it... battery lasts 2 days (!!), camera's ok-ish. Only con = the "
        "charger isn't in the box?! wtf. 9/10, would buy again :-) #happy @TheShop — EDIT: screen cracked after 3 wks, sooo 2/5 now ☹",
    ),
    ("图书馆几点关门？", "市图书馆周一至周五上午九点开门，晚上八点关门，周末提前两个小时。借书证免费，但每人每次最多可以借十本书，期限为四周。逾期每天罚款五角。"),
    ("من كتب الرسالة؟", "كتب الرسالة طبيب شاب من حلب سنة 1893 إلى أخيه في مرسيليا، ووصف فيها السوق الجديد وأسعار القمح وخوف الناس من الوباء."),
    ("Где нашли монеты?", "Монеты нашли весной под полом старой мельницы: 214 серебряных и три золотых, завёрнутых в кусок парусины. Музей выставит их осенью."),
    ("मेला कब लगता है?", "यह मेला हर साल फरवरी के दूसरे सप्ताह में नदी के किनारे लगता है और पाँच दिन चलता है। दूर-दूर से किसान अपने पशु लेकर आते हैं।"),
    ("橋はいつ完成しましたか。", "この橋は1932年に完成し、長さは186メートルである。戦後に一度改修され、今は歩行者と自転車だけが渡ることができる。"),
)  # fmt: skip
