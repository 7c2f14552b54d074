// Inputs that take "auto" or a number were numbers before. To the page their sockets still are, so that links and
// Primitive nodes of older workflows stay as they were; the server takes texts there, too.
import { app } from "../../../scripts/app.js";

app.registerExtension({
  name: "StageVAR.numbers",
  addCustomNodeDefs(defs) {
    const ours = Object.entries(defs).filter(([name]) => name.startsWith("StageVAR"));
    for (const spec of ours.flatMap(([, def]) => Object.values(def.input?.optional ?? {}))) {
      if (spec[0] === "STRING,FLOAT,INT") spec[0] = "FLOAT";
      if (spec[0] === "STRING,INT") spec[0] = "INT";
    }
  },
});
